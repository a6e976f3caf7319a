//! Reads questions from a channel and answers each on a thread of its own: a wait holds up nothing else.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::system::{RebootCommand, reboot};

use crate::jobs::Jobs;
use crate::protocol::{Line, Question, Reply, Request};

/// Says hello, then serves until the channel closes.
///
/// # Errors
/// The channel cannot be read or written.
pub fn until_closed(from: impl Read, to: impl Write + Send + 'static) -> io::Result<()> {
    let writer = Arc::new(Mutex::new(to));
    let jobs = Arc::new(Jobs::default());
    write_line(&writer, &Line::Hello { boot_id: boot_id() })?;
    for line in BufReader::new(from).lines() {
        let line = line?;
        // Noise from before the channel was ours has no id to answer to.
        let Ok(Question { id, request }) = serde_json::from_str(&line) else {
            continue;
        };
        let (writer, jobs) = (Arc::clone(&writer), Arc::clone(&jobs));
        std::thread::Builder::new()
            .name(format!("question-{id}"))
            .spawn(move || {
                let last_act = last_act(&request);
                let reply = answer(request, &jobs).unwrap_or_else(Reply::Failed);
                if let Err(error) = write_line(&writer, &Line::Answer { id, reply }) {
                    eprintln!("guest-agent: answer {id}: {error}");
                }
                if let Some(command) = last_act
                    && let Err(error) = reboot(command)
                {
                    eprintln!("guest-agent: {command:?}: {error}");
                }
            })?;
    }
    Ok(())
}

/// What to do once the answer is out.
fn last_act(request: &Request) -> Option<RebootCommand> {
    match request {
        Request::Reboot => Some(RebootCommand::Restart),
        Request::PowerOff => Some(RebootCommand::PowerOff),
        Request::Kexec => Some(RebootCommand::Kexec),
        _ => None,
    }
}

fn answer(request: Request, jobs: &Jobs) -> Result<Reply, String> {
    match request {
        Request::Hello => Ok(Reply::Hello { boot_id: boot_id() }),
        Request::Exec { argv } => exec(&argv),
        Request::Start(job) => jobs
            .start(job)
            .map(|job| Reply::Started { job })
            .map_err(|error| error.to_string()),
        Request::Poll { job } => jobs.poll(job).map(Reply::Progress),
        Request::Wait { job } => jobs.wait(job).map(Reply::Outcome),
        Request::Stop { job } => jobs.stop(job).map(|()| Reply::Stopping),
        // On the host, where the agent is an ordinary process, these are no one's to ask.
        Request::Reboot | Request::PowerOff | Request::Kexec if std::process::id() != 1 => {
            Err("this is not a guest".to_owned())
        }
        Request::Reboot | Request::PowerOff | Request::Kexec => Ok(Reply::Stopping),
    }
}

fn exec(argv: &[String]) -> Result<Reply, String> {
    let (program, arguments) = argv.split_first().ok_or("no program named")?;
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    let status = output
        .status
        .code()
        .unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Ok(Reply::Exec {
        status,
        output: text,
    })
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// One write a line: lines of different threads never mix.
fn write_line(writer: &Mutex<impl Write>, line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_string(line)?;
    text.push('\n');
    let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
    writer.write_all(text.as_bytes())?;
    writer.flush()
}
