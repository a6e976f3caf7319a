//! A private folder for one lab's sockets, logs and configuration, and the clean-up that no ending escapes.
//!
//! A small shell process, the reaper, waits on a pipe from the harness. When the pipe closes, because the harness is
//! done, panicked, was interrupted or was killed, it ends every process started from this folder that still runs, and
//! removes the folder. Processes are known by their id and recognised by the folder's name in their command line.

use std::fs::{self, DirBuilder};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::Result;
use crate::error::Doing;

/// Ends what `$1/pids` lists and removes `$1` and what it has in memory. Reading `keep` instead of the end of input leaves everything.
const REAPER: &str = r#"
trap '' INT TERM HUP
read -r word && [ "$word" = keep ] && exit 0
while read -r pid; do
    grep -qsF -- "$1" "/proc/$pid/cmdline" && kill -KILL "$pid"
done <"$1/pids"
rm -rf -- "$1" "/dev/shm/${1##*/}"
"#;

/// A folder that vanishes with its owner, unless kept.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    reaper: Option<(Child, ChildStdin)>,
}

impl RunDir {
    /// Makes a fresh one, accessible to its owner only.
    ///
    /// # Errors
    /// There is no room for temporary files, or no shell.
    pub fn create(name: &str) -> Result<Self> {
        let path = fresh_folder(name)?;
        fs::write(path.join("pids"), "").doing(|| format!("writing in {}", path.display()))?;
        let mut reaper = Command::new("sh")
            .args(["-c", REAPER, "reaper"])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0) // an interrupt from the terminal is not for it
            .spawn()
            .doing(|| "starting sh".to_owned())?;
        let reaper = reaper.stdin.take().map(|pipe| (reaper, pipe));
        Ok(Self { path, reaper })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path inside it.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A folder for what must be in memory, and go with this one. Whoever needs it makes it.
    #[must_use]
    pub fn in_memory(&self) -> PathBuf {
        Path::new("/dev/shm").join(self.path.file_name().unwrap_or_default())
    }

    /// Leaves the folder, and the processes that run from it, to the person who wants to look at them.
    pub fn keep(mut self) -> PathBuf {
        if let Some((mut reaper, mut pipe)) = self.reaper.take() {
            let _ = writeln!(pipe, "keep");
            drop(pipe);
            let _ = reaper.wait();
        }
        std::mem::take(&mut self.path)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if let Some((mut reaper, pipe)) = self.reaper.take() {
            drop(pipe);
            let _ = reaper.wait();
        }
    }
}

/// Ends what runs from a folder that was kept, and removes it.
///
/// # Errors
/// There is no such folder, or no shell.
pub fn stop_kept(path: &Path) -> Result<()> {
    let path = path
        .canonicalize()
        .doing(|| format!("looking for {}", path.display()))?;
    fs::metadata(path.join("pids"))
        .doing(|| format!("{} is not a folder that was kept", path.display()))?;
    let mut reaper = Command::new("sh");
    reaper
        .args(["-c", REAPER, "reaper"])
        .arg(path)
        .stdin(Stdio::null());
    reaper.status().doing(|| "starting sh".to_owned()).map(drop)
}

fn fresh_folder(name: &str) -> Result<PathBuf> {
    let base = std::env::temp_dir();
    let mut number = u64::from(std::process::id()) << 16;
    loop {
        let path = base.join(format!("ringswitch-{name}.{number:x}"));
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
            created => {
                created.doing(|| format!("making {}", path.display()))?;
                // Symbolic links resolved: the reaper compares this with command lines.
                return path
                    .canonicalize()
                    .doing(|| format!("looking for {}", path.display()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::await_::{SOON, eventually};
    use crate::process::Process;

    #[test]
    fn it_vanishes_with_its_owner_and_so_does_what_ran_from_it() {
        let folder = RunDir::create("test").unwrap();
        let path = folder.path().to_path_buf();
        let mut command = Command::new("tail");
        command.arg("-f").arg(folder.join("pids"));
        let child = Process::spawn(&folder, "child", &command).unwrap();
        let pid = child.id();
        std::mem::forget(child);
        eventually(SOON, "the child's id", || {
            let listed = fs::read_to_string(path.join("pids")).unwrap();
            if listed.contains(&pid.to_string()) {
                Ok(())
            } else {
                Err(listed)
            }
        })
        .unwrap();
        drop(folder);
        assert!(!path.exists());
        eventually(SOON, "the child's end", || {
            let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // Dead, though nobody has collected it yet.
            let dead = state.is_empty() || state.contains(") Z ") || state.contains(") X ");
            if dead { Ok(()) } else { Err(state) }
        })
        .unwrap();
    }

    #[test]
    fn a_kept_one_stays_until_it_is_stopped() {
        let path = RunDir::create("test").unwrap().keep();
        assert!(path.exists());
        stop_kept(&path).unwrap();
        assert!(!path.exists());
    }
}
