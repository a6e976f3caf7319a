//! The virtual-device table: ask the daemon, then print.
use super::client::Client;
use super::commands::{Format, encode, print, print_json, show};
use super::device_arguments::{DeviceArguments, DeviceCommand};
use super::exit::CliError;
use super::page_arguments::with_next;
use super::reach::percent_encoded;
use super::table::{Align, Table};
use crate::config::flags::parse_port;
use crate::config::{InvalidField, PortName, VlanFields};
use crate::devices::{DeviceFields, DeviceState, VmFields};
use crate::rest::wire::{DeviceList, DeviceReport};
use hyper::body::Bytes;
use std::time::{Duration, Instant};

/// How often a device that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// `ringswitch device ...`
pub async fn ask(command: &DeviceCommand, client: &Client, format: Format) -> Result<(), CliError> {
    match command {
        DeviceCommand::Add(arguments) => add(arguments, client, format).await,
        DeviceCommand::List {
            vm,
            state,
            model,
            page,
        } => {
            let filters = [("vm", vm), ("state", state), ("model", model)];
            let given = filters.iter().filter_map(|(name, value)| {
                let value = value.as_ref()?;
                Some(format!("{name}={}", percent_encoded(value)))
            });
            let query: Vec<String> = given.chain(page.parts()).collect();
            let body = client
                .get(&format!("/v1/devices?{}", query.join("&")))
                .await?;
            show(client, format, &body, |list: &DeviceList| {
                with_next(device_list(list), list.next.as_ref())
            })
        }
        DeviceCommand::Show { name } => {
            let body = client.get(&device_path(name)?).await?;
            show(client, format, &body, device)
        }
        DeviceCommand::Remove {
            name,
            force,
            timeout,
        } => {
            let path = device_path(name)?;
            let body = client
                .delete(&format!("{path}?force={force}&timeout_ms={timeout}"))
                .await?;
            removed(name, client, format, &body)
        }
    }
}

async fn add(arguments: &DeviceArguments, client: &Client, format: Format) -> Result<(), CliError> {
    let fields = fields(arguments)?;
    let mut body = client.post("/v1/devices", encode(&fields)?).await?;
    if let Some(seconds) = arguments.wait {
        let until = Instant::now() + Duration::from_secs(seconds.into());
        let path = device_path(&fields.name)?;
        let is_final = |body: &Bytes| {
            let report: DeviceReport = client.decode(body)?;
            let is = |state: DeviceState| report.state == state.name();
            Ok::<_, CliError>(is(DeviceState::Ready) || is(DeviceState::Failed))
        };
        while !is_final(&body)? && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
            body = client.get(&path).await?;
        }
    }
    let report: DeviceReport = client.decode(&body)?;
    show(client, format, &body, |report: &DeviceReport| {
        format!("device {} is {}\n", report.device.name, state_text(report))
    })?;
    if arguments.wait.is_some() && report.state != DeviceState::Ready.name() {
        return Err(CliError::NotReady(report.device.name));
    }
    Ok(())
}

fn removed(name: &str, client: &Client, format: Format, body: &Bytes) -> Result<(), CliError> {
    match (format, body.is_empty()) {
        (Format::Text, true) => print(&format!("device {name} is removed\n")),
        (Format::Json, true) => Ok(()),
        (_, false) => {
            let report: DeviceReport = client.decode(body)?;
            match format {
                Format::Json => print_json(body)?,
                Format::Text => print(&format!("device {name} is {}\n", state_text(&report)))?,
            }
            Err(CliError::NotGone(name.to_owned()))
        }
    }
}

fn fields(arguments: &DeviceArguments) -> Result<DeviceFields, CliError> {
    let Some((hypervisor, socket)) = arguments.vm.split_once(':') else {
        return Err(InvalidField::new(
            "vm",
            "it does not say which hypervisor",
            "write qemu:SOCKET or cloud-hypervisor:SOCKET",
        )
        .into());
    };
    Ok(DeviceFields {
        name: PortName::parse(&arguments.name)?.to_string(),
        vm: VmFields {
            hypervisor: hypervisor.to_owned(),
            socket: socket.to_owned(),
        },
        model: arguments.model.clone(),
        mac: arguments.mac.clone(),
        queue_pairs: arguments.queue_pairs,
        packed: arguments.packed.then_some(true),
        mtu: arguments.mtu,
        vlan: vlan(arguments)?,
        socket: arguments.socket.clone(),
    })
}

/// As ports have it on the command line.
fn vlan(arguments: &DeviceArguments) -> Result<Option<VlanFields>, InvalidField> {
    let Some(vlan) = &arguments.vlan else {
        return Ok(None);
    };
    let native = arguments.native.map(|native| format!(",native={native}"));
    let text = format!("vlan={vlan}{}", native.unwrap_or_default());
    Ok(parse_port(&text)?.vlan)
}

/// A device's name needs no escaping in a path: only its own characters pass.
fn device_path(name: &str) -> Result<String, CliError> {
    Ok(format!("/v1/devices/{}", PortName::parse(name)?))
}

fn device_list(list: &DeviceList) -> String {
    let left = Align::Left;
    let mut table = Table::new(&[
        ("NAME", left),
        ("MODEL", left),
        ("MAC", left),
        ("STATE", left),
        ("VM", left),
        ("REASON", left),
    ]);
    for report in &list.devices {
        let device = &report.device;
        table.row([
            device.name.clone(),
            device.model.clone(),
            device.mac.clone().unwrap_or_default(),
            report.state.clone(),
            format!("{}:{}", device.vm.hypervisor, device.vm.socket),
            report.reason.clone().unwrap_or_default(),
        ]);
    }
    table.render()
}

fn device(report: &DeviceReport) -> String {
    let device = &report.device;
    let number = |value: Option<i64>| value.map(|value| value.to_string());
    let lines = [
        ("name", Some(device.name.clone())),
        (
            "vm",
            Some(format!("{}:{}", device.vm.hypervisor, device.vm.socket)),
        ),
        ("model", Some(device.model.clone())),
        ("mac", device.mac.clone()),
        ("queue_pairs", number(device.queue_pairs)),
        ("mtu", number(device.mtu)),
        ("socket", device.socket.clone()),
        ("port", Some(report.port.clone())),
        ("state", Some(state_text(report))),
        ("to do", report.remedy.clone()),
    ];
    let mut text = String::new();
    for (name, value) in lines {
        if let Some(value) = value {
            text += &format!("{name:<12} {}\n", super::table::printable(&value));
        }
    }
    text += "history, in seconds before the last\n";
    let last = report.history.last().map_or(0, |last| last.at_ms);
    for transition in &report.history {
        let before = last.saturating_sub(transition.at_ms) as f64 / 1000.0;
        let reason = transition.reason.as_deref().unwrap_or_default();
        let reason = super::table::printable(reason);
        let line = format!("{before:>10.3}  {:<18} {reason}", transition.state);
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn state_text(report: &DeviceReport) -> String {
    let retry = report
        .retry_in_ms
        .map(|ms| format!(" (tried again in {} ms)", ms));
    match &report.reason {
        Some(reason) => format!("{}: {reason}{}", report.state, retry.unwrap_or_default()),
        None => report.state.clone(),
    }
}
