//! What every bench here prints: time, cycles and allocations of one iteration, or of one frame of it.
//!
//! Cycles are the time multiplied by the time-stamp counter's frequency, which Linux gives in `/proc/cpuinfo` on virtual machines and on
//! an idle desktop's cores alike is near the clock. Allocations are those of the routine alone, counted apart from the timing.
#![allow(dead_code, reason = "each bench uses a part of this")]

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use criterion::measurement::{Measurement, ValueFormatter};
use criterion::{BatchSize, BenchmarkGroup, Criterion, Throughput};

/// Iterations over which allocations are counted.
const COUNTED: u32 = 64;

/// Wall-clock time, shown with cycles.
pub struct TimeAndCycles {
    formatter: Formatter,
}

struct Formatter {
    /// Cycles a nanosecond.
    ghz: f64,
}

/// A group of benches.
pub type Group<'a> = BenchmarkGroup<'a, TimeAndCycles>;

/// Criterion with this measurement, in settings that end a whole run within minutes.
pub fn criterion() -> Criterion<TimeAndCycles> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mhz = cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "cpu MHz").then(|| value.trim().parse::<f64>().ok())?
    });
    Criterion::default()
        .with_measurement(TimeAndCycles {
            formatter: Formatter {
                ghz: mhz.unwrap_or(0.0) / 1000.0,
            },
        })
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(50)
}

impl Measurement for TimeAndCycles {
    type Intermediate = Instant;
    type Value = Duration;

    fn start(&self) -> Instant {
        Instant::now()
    }

    fn end(&self, started: Instant) -> Duration {
        started.elapsed()
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &self.formatter
    }
}

impl Formatter {
    fn show(&self, ns: f64) -> String {
        let mut text = match ns {
            ns if ns < 1e3 => format!("{ns:.2} ns"),
            ns if ns < 1e6 => format!("{:.2} µs", ns / 1e3),
            ns => format!("{:.2} ms", ns / 1e6),
        };
        if self.ghz > 0.0 {
            let _ = write!(text, " = {:.0} cycles", ns * self.ghz);
        }
        text
    }
}

impl ValueFormatter for Formatter {
    fn format_value(&self, ns: f64) -> String {
        self.show(ns)
    }

    /// Of elements, the time of each; of bytes, bytes a second.
    fn format_throughput(&self, throughput: &Throughput, ns: f64) -> String {
        match *throughput {
            Throughput::Elements(count) => format!("{} each", self.show(ns / count as f64)),
            Throughput::Bytes(bytes) => format!("{:.2} GB/s", bytes as f64 / ns),
            _ => String::new(),
        }
    }

    fn scale_values(&self, _typical: f64, _values: &mut [f64]) -> &'static str {
        "ns"
    }

    fn scale_throughputs(
        &self,
        _typical: f64,
        throughput: &Throughput,
        values: &mut [f64],
    ) -> &'static str {
        match *throughput {
            Throughput::Elements(count) => {
                values.iter_mut().for_each(|ns| *ns /= count as f64);
                "ns each"
            }
            Throughput::Bytes(bytes) => {
                values.iter_mut().for_each(|ns| *ns = bytes as f64 / *ns);
                "GB/s"
            }
            _ => "",
        }
    }

    fn scale_for_machines(&self, _values: &mut [f64]) -> &'static str {
        "ns"
    }
}

/// Benches `routine`.
pub fn bench<T>(group: &mut Group<'_>, name: &str, mut routine: impl FnMut() -> T) {
    let mut counted = None;
    group.bench_function(name, |bencher| {
        counted.get_or_insert_with(|| {
            std::hint::black_box(routine());
            let counted = allocation_counter::measure(|| {
                for _ in 0..COUNTED {
                    std::hint::black_box(routine());
                }
            });
            counted.count_total
        });
        bencher.iter(&mut routine);
    });
    print_allocations(counted);
}

/// Benches `routine`, which needs `setup` before each iteration: that is neither timed nor counted.
pub fn bench_after(
    group: &mut Group<'_>,
    name: &str,
    mut setup: impl FnMut(),
    mut routine: impl FnMut(),
) {
    let mut counted = None;
    group.bench_function(name, |bencher| {
        counted.get_or_insert_with(|| {
            // What is taken once and kept is not what an iteration costs.
            setup();
            routine();
            let mut count = 0;
            for _ in 0..COUNTED {
                setup();
                count += allocation_counter::measure(&mut routine).count_total;
            }
            count
        });
        bencher.iter_batched(&mut setup, |()| routine(), BatchSize::PerIteration);
    });
    print_allocations(counted);
}

/// Nothing is counted when the command line leaves a bench out.
fn print_allocations(counted: Option<u64>) {
    if let Some(count) = counted {
        let each = count as f64 / f64::from(COUNTED);
        println!("{:24}allocs: {each}", "");
    }
}
