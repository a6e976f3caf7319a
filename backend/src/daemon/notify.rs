//! Tells the service manager how far the daemon is (sd_notify(3)).
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends `state` (`READY=1`, `STOPPING=1`) to `$NOTIFY_SOCKET`, if there is one. A failure is logged: the daemon can do without.
pub fn service_manager(state: &str) {
    let Some(socket) =
        std::env::var_os("NOTIFY_SOCKET").and_then(|socket| socket.into_string().ok())
    else {
        return;
    };
    if let Err(error) = send(&socket, state) {
        log::warn!("cannot tell the service manager {state} through {socket}: {error}");
    }
}

/// A name that starts with `@` is in the abstract namespace (unix(7)).
fn send(socket: &str, state: &str) -> io::Result<()> {
    let address = match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?
        .send_to_addr(state.as_bytes(), &address)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::tempdir::TempDir;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn a_socket_with_a_path_is_told() {
        let folder =
            TempDir::new_with_prefix(std::env::temp_dir().join("ringswitch-notify-")).unwrap();
        let path = folder.as_path().join("notify.sock");
        let manager = UnixDatagram::bind(&path).unwrap();
        send(path.to_str().unwrap(), "READY=1").unwrap();
        assert_eq!(received(&manager), "READY=1");
    }

    #[test]
    fn a_socket_with_an_abstract_name_is_told() {
        let name = format!("ringswitch-notify-{}", std::process::id());
        let manager =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send(&format!("@{name}"), "STOPPING=1").unwrap();
        assert_eq!(received(&manager), "STOPPING=1");
    }
}
