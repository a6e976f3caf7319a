//! `GET /metrics`: everything that is counted, as Prometheus reads it (text format 0.0.4).
//!
//! A scrape is one question to the control thread, as `GET /v1/stats` is; nothing is kept from one to the next but what the busy ratio is
//! measured against. Labels are names of ports, tables and reasons, which operators give: a guest cannot add a series.

use super::problem::Problem;
use super::routes::Admin;
use super::wire::direction;
use crate::datapath::histogram::HistogramView;
use crate::datapath::{QueueView, WorkerProfile, WorkerStats};
use crate::devices::{DeviceState, DeviceView};
use crate::metrics::{PortStats, Stats};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use prometheus::proto::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TEXT_FORMAT, TextEncoder};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use switch_core::engine::control::ListedTable;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// `/metrics`.
pub fn routes() -> OpenApiRouter<Admin> {
    OpenApiRouter::default().routes(routes!(scrape))
}

/// Everything that is counted, for Prometheus.
#[utoipa::path(
    get,
    path = "/metrics",
    responses(
        (status = 200, body = String, content_type = "text/plain", description = "In Prometheus' text format, version 0.0.4")
    )
)]
async fn scrape(State(admin): State<Admin>) -> Result<impl IntoResponse, Problem> {
    let stats = admin.control.stats().await?;
    let tables = admin.tables.map(|tables| tables.tables());
    let devices = match &admin.devices {
        Some(devices) => devices.list().await?,
        None => Vec::new(),
    };
    let ratios = admin.busy_ratios.of(&stats.workers);
    let mut families = families(&stats, &tables.unwrap_or_default(), &ratios);
    if admin.devices.is_some() {
        families.push(of_devices(&devices).0);
    }
    let mut text = Vec::new();
    TextEncoder::new()
        .encode(&families, &mut text)
        .map_err(|error| {
            let reason = format!("the metrics cannot be written: {error}");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, reason)
        })?;
    Ok(([(header::CONTENT_TYPE, TEXT_FORMAT)], text))
}

/// The least time that a ratio is measured over: two who scrape at once are told the same.
const RATIO_WINDOW: Duration = Duration::from_secs(1);

/// What part of their time workers were busy with batches since the scrape before.
#[derive(Debug, Default)]
pub struct BusyRatios(Mutex<Option<Measured>>);

#[derive(Debug)]
struct Measured {
    at: Instant,
    busy_ns: Vec<u64>,
    ratios: Vec<f64>,
}

impl BusyRatios {
    fn of(&self, workers: &[WorkerStats]) -> Vec<f64> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let busy_ns: Vec<u64> = workers.iter().map(|worker| worker.busy_ns).collect();
        if let Some(last) = last.as_ref()
            && now.duration_since(last.at) < RATIO_WINDOW
        {
            return last.ratios.clone();
        }
        let ratios = match last.as_ref() {
            None => vec![0.0; workers.len()],
            Some(last) => {
                let span_ns = now.duration_since(last.at).as_nanos() as f64;
                let spent = busy_ns.iter().zip(&last.busy_ns);
                let ratio =
                    |(now, before): (&u64, &u64)| now.saturating_sub(*before) as f64 / span_ns;
                // Times are estimates: a worker cannot be more than busy.
                spent.map(ratio).map(|ratio| ratio.min(1.0)).collect()
            }
        };
        *last = Some(Measured {
            at: now,
            busy_ns,
            ratios: ratios.clone(),
        });
        ratios
    }
}

/// Labels of a series.
type Labels<'a> = &'a [(&'static str, &'a str)];

/// One metric's series.
struct Family(MetricFamily);

impl Family {
    fn new(name: &str, help: &str, kind: MetricType) -> Self {
        let mut family = MetricFamily::default();
        family.set_name(format!("ringswitch_{name}"));
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        Self(family)
    }

    fn counter(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::COUNTER)
    }

    fn gauge(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::GAUGE)
    }

    fn add(&mut self, labels: Labels<'_>, value: f64) {
        let mut metric = labelled(labels);
        match self.0.get_field_type() {
            MetricType::COUNTER => {
                let mut counter = prometheus::proto::Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            _ => {
                let mut gauge = prometheus::proto::Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
        }
        self.0.mut_metric().push(metric);
    }

    /// A histogram of numbers that are counted in units of `unit`.
    fn add_histogram(&mut self, labels: Labels<'_>, view: &HistogramView, unit: f64) {
        let mut histogram = Histogram::default();
        let mut count = 0;
        let bounds = view.bounds.iter().map(|(bound, numbers)| {
            count += numbers;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound as f64 * unit);
            bucket.set_cumulative_count(count);
            bucket
        });
        histogram.set_bucket(bounds.collect());
        histogram.set_sample_count(count + view.above);
        histogram.set_sample_sum(view.sum as f64 * unit);
        let mut metric = labelled(labels);
        metric.set_histogram(histogram);
        self.0.mut_metric().push(metric);
    }
}

fn labelled(labels: Labels<'_>) -> Metric {
    let pairs = labels.iter().map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    });
    Metric::from_label(pairs.collect())
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn families(stats: &Stats, tables: &[ListedTable], busy: &[f64]) -> Vec<MetricFamily> {
    let mut about = Family::gauge("build_info", "1, labelled with the version that runs.");
    about.add(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    let mut uptime = Family::gauge("uptime_seconds", "Since the daemon started.");
    uptime.add(&[], stats.uptime.as_secs_f64());
    let mut families = vec![about, uptime];
    families.extend(of_ports(&stats.ports));
    families.extend(of_queues(&stats.ports));
    families.extend(of_workers(&stats.workers, &stats.profiles, busy));
    families.extend(of_tables(stats, tables));
    // A name without a series has no place in the format.
    let families = families.into_iter().map(|Family(family)| family);
    families
        .filter(|family| !family.get_metric().is_empty())
        .collect()
}

fn of_ports(ports: &[PortStats]) -> Vec<Family> {
    let mut up = Family::gauge("port_up", "Whether frames flow: 1 in state up, else 0.");
    let mut state = Family::gauge(
        "port_state",
        "1, labelled with the port's state in one word.",
    );
    let mut frames = Family::counter(
        "port_frames_total",
        "Frames that a port's guest sent (guest_tx) or was delivered (guest_rx), since the port was added anywhere.",
    );
    let mut bytes = Family::counter(
        "port_bytes_total",
        "Their bytes, without virtio-net headers.",
    );
    let mut drops = Family::counter(
        "port_dropped_frames_total",
        "Frames dropped at a port, each under one reason of docs/drop-reasons.md.",
    );
    let mut busy = Family::counter(
        "port_busy_seconds_total",
        "Time of workers on the frames that a port's guest sent, delivery included: an estimate from one batch in 16.",
    );
    let mut logging = Family::gauge(
        "port_migrating",
        "1 while pages that are written to a port's VM are marked for its migration; no series otherwise.",
    );
    let mut pages = Family::counter(
        "port_migration_pages_marked_total",
        "Pages that were clear before they were marked, in the migration under way.",
    );
    let mut rate = Family::gauge(
        "port_migration_pages_per_second",
        "The same a second, of late.",
    );
    let mut rounds = Family::counter(
        "port_migration_rounds_total",
        "How often the front-end was seen to have read the marks out, in the migration under way.",
    );
    for port in ports {
        let name = port.name.as_str();
        let only = [("port", name)];
        up.add(&only, f64::from(u8::from(port.state == "up")));
        state.add(&[("port", name), ("state", &port.state)], 1.0);
        let counters = &port.counters;
        for (direction, frames_now, bytes_now) in [
            (
                "guest_tx",
                counters.guest_tx_frames,
                counters.guest_tx_bytes,
            ),
            (
                "guest_rx",
                counters.guest_rx_frames,
                counters.guest_rx_bytes,
            ),
        ] {
            let labels = [("port", name), ("direction", direction)];
            frames.add(&labels, frames_now as f64);
            bytes.add(&labels, bytes_now as f64);
        }
        for (reason, count) in &counters.drops {
            drops.add(&[("port", name), ("reason", reason)], *count as f64);
        }
        busy.add(&only, seconds(counters.busy_ns));
        if let Some(log) = &port.logging {
            logging.add(&only, 1.0);
            pages.add(&only, log.pages_marked as f64);
            rate.add(&only, log.pages_per_second as f64);
            rounds.add(&only, log.rounds as f64);
        }
    }
    vec![
        up, state, frames, bytes, drops, busy, logging, pages, rate, rounds,
    ]
}

/// One of a queue's numbers; `None`: it has none now.
type Count = fn(&QueueView) -> Option<u64>;

fn of_queues(ports: &[PortStats]) -> Vec<Family> {
    let numbers: [(&str, &str, Count); 7] = [
        (
            "queue_frames_total",
            "Frames taken from a guest-tx ring or delivered to a guest-rx ring, since this process serves it.",
            |queue| Some(queue.frames),
        ),
        (
            "queue_bytes_total",
            "Their bytes, without virtio-net headers.",
            |queue| Some(queue.bytes),
        ),
        (
            "queue_notifications_sent_total",
            "Interrupts asked for: call eventfds written.",
            |queue| Some(queue.notifications_sent),
        ),
        (
            "queue_notifications_saved_total",
            "Batches that the driver did not want to be interrupted for.",
            |queue| Some(queue.notifications_saved),
        ),
        (
            "queue_full_total",
            "Batches of which a guest-rx ring had no room for a part.",
            |queue| Some(queue.ring_full),
        ),
        (
            "queue_offered",
            "What a driver offers and nobody has taken, chains or a packed ring's descriptors: of a guest-tx ring frames that wait, of a guest-rx ring free buffers.",
            |queue| Some(queue.fill?.offered.into()),
        ),
        ("queue_size", "Entries of a ring that runs.", |queue| {
            Some(queue.fill?.size.into())
        }),
    ];
    let family = |(name, help, count): (&str, &str, Count)| {
        let mut family = match name.ends_with("_total") {
            true => Family::counter(name, help),
            false => Family::gauge(name, help),
        };
        for port in ports {
            for queue in &port.queues {
                let Some(number) = count(queue) else { continue };
                let direction = direction(queue.is_guest_tx);
                let pair = queue.pair.to_string();
                let labels = [
                    ("port", port.name.as_str()),
                    ("queue", &pair),
                    ("direction", direction),
                ];
                family.add(&labels, number as f64);
            }
        }
        family
    };
    numbers.into_iter().map(family).collect()
}

fn of_workers(workers: &[WorkerStats], profiles: &[WorkerProfile], busy: &[f64]) -> Vec<Family> {
    let mut frames = Family::counter("worker_frames_total", "Frames that a worker took.");
    let mut batches = Family::counter("worker_batches_total", "Batches they came in.");
    let mut sleeps = Family::counter("worker_sleeps_total", "Times it slept for want of work.");
    let mut awake = Family::counter(
        "worker_awake_seconds_total",
        "Time awake, polling included.",
    );
    let mut busy_total = Family::counter(
        "worker_busy_seconds_total",
        "Time on batches: an estimate from one in 16.",
    );
    let mut cpu = Family::counter(
        "worker_cpu_seconds_total",
        "CPU time of the worker's thread.",
    );
    let mut empty = Family::counter(
        "worker_empty_rounds_total",
        "Rounds over all polled rings that found nothing.",
    );
    let mut sources = Family::gauge("worker_sources", "Rings and TAPs that it serves.");
    let mut ratio = Family::gauge(
        "worker_busy_ratio",
        "Part of its time on batches since the scrape before, 0 to 1.",
    );
    let mut misses = Family::counter(
        "worker_cache_misses_total",
        "Frames decided by the tables; the others of worker_frames_total were decided by the worker's cache, or refused before.",
    );
    let mut flows = Family::gauge(
        "worker_cache_flows",
        "Flows in its cache, where a program keeps them.",
    );
    let mut sizes = Family::new(
        "worker_batch_frames",
        "Frames of a batch.",
        MetricType::HISTOGRAM,
    );
    let mut delivery = Family::new(
        "worker_delivery_seconds",
        "From when a batch was seen in a guest-tx ring until all of it was delivered, of one batch in 16.",
        MetricType::HISTOGRAM,
    );
    for (index, worker) in workers.iter().enumerate() {
        let index_text = index.to_string();
        let labels = [("worker", index_text.as_str())];
        frames.add(&labels, worker.frames as f64);
        batches.add(&labels, worker.batches as f64);
        sleeps.add(&labels, worker.sleeps as f64);
        awake.add(&labels, seconds(worker.awake_ns));
        busy_total.add(&labels, seconds(worker.busy_ns));
        if let Some(cpu_ns) = worker.cpu_ns {
            cpu.add(&labels, seconds(cpu_ns));
        }
        empty.add(&labels, worker.empty_rounds as f64);
        sources.add(&labels, worker.sources as f64);
        ratio.add(&labels, busy.get(index).copied().unwrap_or_default());
        let Some(profile) = profiles.get(index) else {
            continue;
        };
        misses.add(&labels, profile.cache_misses as f64);
        if let Some(count) = profile.cache_flows {
            flows.add(&labels, count as f64);
        }
        sizes.add_histogram(&labels, &profile.batch_frames, 1.0);
        delivery.add_histogram(&labels, &profile.delivery_ns, 1e-9);
    }
    vec![
        frames, batches, sleeps, awake, busy_total, cpu, empty, sources, ratio, misses, flows,
        sizes, delivery,
    ]
}

fn of_devices(devices: &[DeviceView]) -> Family {
    let mut family = Family::gauge("devices", "Devices of VMs in this state.");
    for state in DeviceState::ALL {
        let count = devices
            .iter()
            .filter(|view| view.actual.status().state == state)
            .count();
        family.add(&[("state", state.name())], count as f64);
    }
    family
}

fn of_tables(stats: &Stats, tables: &[ListedTable]) -> Vec<Family> {
    let mut entries = Family::gauge("table_entries", "Entries of a table of the program.");
    let mut size = Family::gauge("table_size", "Most entries that it may have.");
    for table in tables {
        let labels = [("table", table.name.as_str())];
        entries.add(&labels, table.entries as f64);
        size.add(&labels, table.size as f64);
    }
    let macs = &stats.stations;
    let mut stations = Family::gauge("stations", "MAC addresses that are known.");
    stations.add(&[], macs.entries as f64);
    let mut most = Family::gauge("stations_size", "Most that can be.");
    most.add(&[], macs.capacity as f64);
    let mut learned = Family::counter("stations_learned_total", "MAC addresses learned.");
    learned.add(&[], macs.learned as f64);
    let mut moved = Family::counter(
        "stations_moved_total",
        "MAC addresses that turned up behind another port.",
    );
    moved.add(&[], macs.moved as f64);
    let mut aged = Family::counter(
        "stations_aged_total",
        "MAC addresses forgotten for their age.",
    );
    aged.add(&[], macs.aged as f64);
    vec![entries, size, stations, most, learned, moved, aged]
}
