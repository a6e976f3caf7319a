//! The admin interface over TCP, through the real daemon: who is let in, with what, and what clients that are not cost.
use crate::process::{Daemon, Home, WITHIN};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

pub const ADMIN: &str = "admin-token-of-the-test";
const READER: &str = "reader-token-of-the-test";

fn write_secret(path: &Path, text: &str) {
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600);
    file.open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

pub fn with_tokens() -> Home {
    let home = Home::forgetful();
    let tokens = format!("admin {ADMIN}\nread {READER}\n");
    write_secret(&home.path("tokens"), &tokens);
    write_secret(&home.path("admin.token"), &format!("{ADMIN}\n"));
    write_secret(
        &home.path("reader.token"),
        &format!("# mine\nread {READER}\n"),
    );
    home
}

/// Where it says it serves.
fn address(home: &Home) -> SocketAddr {
    let log = home.log();
    let (_, rest) = log.split_once("serving http").expect(&log);
    let (_, place) = rest.split_once("://").unwrap();
    place.lines().next().unwrap().parse().unwrap()
}

pub fn over_tcp(home: &Home, more: &[&str]) -> (Daemon, SocketAddr) {
    let daemon = home.start(&[&["--listen", "127.0.0.1:0"], more].concat());
    (daemon, address(home))
}

/// The head and body of an answer.
fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(WITHIN)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn ask(address: SocketAddr, (method, path): (&str, &str), token: Option<&str>) -> (u16, String) {
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
    let token = token.unwrap_or_default();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{token}\r\n");
    let answer = exchange(address, &head);
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.to_ascii_lowercase())
}

#[test]
fn tcp_without_anybody_to_ask_is_refused_before_anything_is_opened() {
    let home = with_tokens();
    let tokens = home.text("tokens");
    for (arguments, part) in [
        (
            vec!["--listen", "127.0.0.1:0"],
            "--listen: `listen`: whoever reaches the address could do everything",
        ),
        (
            vec!["--token-file", &tokens],
            "--token-file: `token_file`: the daemon does not listen on TCP",
        ),
        (
            vec!["--listen", "localhost", "--token-file", &tokens],
            "is not an address with a port",
        ),
        (
            vec!["--listen", "127.0.0.1:0", "--token-file", "/nonexistent"],
            "/nonexistent: cannot be read",
        ),
    ] {
        for command in ["run", "check"] {
            let output = home.ask(&[&[command], &arguments[..]].concat());
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(
                output.status.code(),
                Some(2),
                "{command} {arguments:?}: {said}"
            );
            assert!(said.contains(part), "{command} {arguments:?}: {said}");
        }
    }
    assert!(!home.path("admin.sock").exists());
}

#[test]
fn a_token_says_what_a_client_over_tcp_may_do() {
    let home = with_tokens();
    let (_daemon, address) = over_tcp(&home, &["--token-file", &home.text("tokens")]);
    let list = ("GET", "/v1/ports");
    assert_eq!(ask(address, list, Some(ADMIN)).0, 200);
    assert_eq!(ask(address, list, Some(READER)).0, 200);
    for (token, part) in [
        (None, "bearer realm="),
        (Some("another-token-of-nobody"), r#"error="invalid_token""#),
    ] {
        let (status, answer) = ask(address, list, token);
        assert_eq!(status, 401);
        assert!(
            answer.contains("www-authenticate: bearer") && answer.contains(part),
            "{answer}"
        );
        assert!(
            answer.contains("content-type: application/problem+json"),
            "{answer}"
        );
    }
    let (status, answer) = ask(address, ("DELETE", "/v1/ports/vm1"), Some(READER));
    assert_eq!(status, 403);
    assert!(answer.contains(r#"error="insufficient_scope""#), "{answer}");
    assert_eq!(
        ask(address, ("DELETE", "/v1/ports/vm1"), Some(ADMIN)).0,
        404
    );

    // The command line, by flags.
    let url = format!("http://{address}");
    let remote = |token: &str, command: &[&str]| {
        let token = home.text(token);
        home.ask_anywhere(&[command, &["--url", &url, "--token-file", &token]].concat())
    };
    let added = remote("admin.token", &["port", "add", &home.vm("vm1")]);
    assert_eq!(added.status.code(), Some(0), "{added:?}");
    let listed = remote("reader.token", &["port", "list"]);
    assert!(
        String::from_utf8_lossy(&listed.stdout).contains("vm1"),
        "{listed:?}"
    );
    let heard = remote(
        "reader.token",
        &["events", "--after", "1-1", "--count", "1"],
    );
    assert_eq!(heard.status.code(), Some(0), "{heard:?}");
    assert!(
        String::from_utf8_lossy(&heard.stdout).contains("port_added"),
        "{heard:?}"
    );
    let refused = remote("reader.token", &["port", "remove", "vm1"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("for reading only"),
        "{refused:?}"
    );

    // A token that is taken out of the file ends there.
    write_secret(
        &home.path("tokens"),
        &format!("read {READER}\n# without the other\n"),
    );
    assert_eq!(ask(address, list, Some(ADMIN)).0, 401);
    assert_eq!(ask(address, list, Some(READER)).0, 200);
}

/// A CA, and what it has signed, in the files of a home.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(home: &Home, name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(home.path(&format!("{name}.ca")), issuer.pem()).unwrap();
        Self(issuer)
    }

    fn sign(&self, home: &Home, name: &str, purpose: ExtendedKeyUsagePurpose) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().unwrap();
        let signed = params.signed_by(&key, &self.0).unwrap();
        std::fs::write(home.path(&format!("{name}.cert")), signed.pem()).unwrap();
        write_secret(&home.path(&format!("{name}.key")), &key.serialize_pem());
    }
}

fn with_certificates() -> Home {
    let home = with_tokens();
    Authority::new(&home, "server").sign(&home, "server", ExtendedKeyUsagePurpose::ServerAuth);
    Authority::new(&home, "admins").sign(&home, "alice", ExtendedKeyUsagePurpose::ClientAuth);
    Authority::new(&home, "readers").sign(&home, "bob", ExtendedKeyUsagePurpose::ClientAuth);
    Authority::new(&home, "others").sign(&home, "mallory", ExtendedKeyUsagePurpose::ClientAuth);
    home
}

#[test]
fn a_certificate_is_worth_what_its_ca_is_and_nothing_without_one() {
    let home = with_certificates();
    let file = |name: &str| home.text(name);
    let (cert, key) = (file("server.cert"), file("server.key"));
    let (admins, readers) = (file("admins.ca"), file("readers.ca"));
    let (_daemon, address) = over_tcp(
        &home,
        &[
            "--tls-cert",
            &cert,
            "--tls-key",
            &key,
            "--tls-client-ca",
            &admins,
            "--tls-read-client-ca",
            &readers,
        ],
    );
    let url = format!("https://{address}");
    let ask = |who: Option<&str>, ca: &str, command: &[&str]| {
        let mut arguments = command.to_vec();
        let ca = file(ca);
        arguments.extend(["--url", &url, "--ca", &ca]);
        let files = who.map(|who| (file(&format!("{who}.cert")), file(&format!("{who}.key"))));
        if let Some((cert, key)) = &files {
            arguments.extend(["--cert", cert, "--key", key]);
        }
        let output = home.ask_anywhere(&arguments);
        (
            output.status.code().unwrap(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let vm1 = home.vm("vm1");
    let add = ["port", "add", vm1.as_str()];
    assert_eq!(ask(Some("alice"), "server.ca", &add), (0, String::new()));
    assert_eq!(
        ask(Some("bob"), "server.ca", &["port", "list"]),
        (0, String::new())
    );
    let (code, said) = ask(Some("bob"), "server.ca", &["port", "remove", "vm1"]);
    assert!(code == 1 && said.contains("for reading only"), "{said}");
    for who in [None, Some("mallory")] {
        let (code, said) = ask(who, "server.ca", &["port", "list"]);
        assert_ne!(code, 0, "{who:?}: {said}");
    }
    // A daemon that is not the one that was meant.
    let (code, said) = ask(Some("alice"), "others.ca", &["port", "list"]);
    assert!(code == 3 && said.contains("--ca"), "{said}");
    // Whoever speaks no TLS is not let in either.
    let plain = format!("http://{address}");
    assert_ne!(
        home.ask_anywhere(&["port", "list", "--url", &plain])
            .status
            .code(),
        Some(0)
    );
}

#[test]
fn with_both_a_client_needs_both() {
    let home = with_certificates();
    let file = |name: &str| home.text(name);
    let (cert, key) = (file("server.cert"), file("server.key"));
    let (admins, tokens) = (file("admins.ca"), file("tokens"));
    let (_daemon, address) = over_tcp(
        &home,
        &[
            "--tls-cert",
            &cert,
            "--tls-key",
            &key,
            "--tls-client-ca",
            &admins,
            "--token-file",
            &tokens,
        ],
    );
    let url = format!("https://{address}");
    let (ca, cert, key) = (file("server.ca"), file("alice.cert"), file("alice.key"));
    let common = ["--url", &url, "--ca", &ca, "--cert", &cert, "--key", &key];
    let without = home.ask_anywhere(&[&["port", "list"], &common[..]].concat());
    let said = String::from_utf8_lossy(&without.stderr).into_owned();
    assert!(
        without.status.code() == Some(1) && said.contains("no token"),
        "{said}"
    );
    let token = file("reader.token");
    let with = |command: &[&str]| {
        let output = home.ask_anywhere(&[command, &common[..], &["--token-file", &token]].concat());
        output.status.code()
    };
    assert_eq!(with(&["port", "list"]), Some(0));
    assert_eq!(with(&["port", "remove", "vm1"]), Some(1));
}

#[test]
fn clients_that_prove_nothing_cost_neither_the_admin_socket_nor_others_anything() {
    let home = with_certificates();
    let file = |name: &str| home.text(name);
    let (cert, key, tokens) = (file("server.cert"), file("server.key"), file("tokens"));
    let (_daemon, address) = over_tcp(
        &home,
        &[
            "--tls-cert",
            &cert,
            "--tls-key",
            &key,
            "--token-file",
            &tokens,
        ],
    );
    let dead: Vec<TcpStream> = (0..150)
        .map(|number| {
            let mut stream = TcpStream::connect(address).unwrap();
            // The beginning of a handshake, of none, or nothing.
            let part: &[u8] = match number % 3 {
                0 => b"",
                1 => b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
                _ => b"GET /healthz HTTP/1.1\r\n\r\n",
            };
            // It may be closed already.
            let _ = stream.write_all(part);
            stream
        })
        .collect();
    assert_eq!(home.get("/healthz")["status"], "ok");
    let (url, ca, token) = (
        format!("https://{address}"),
        file("server.ca"),
        file("admin.token"),
    );
    let output = home.ask_anywhere(&[
        "port",
        "list",
        "--url",
        &url,
        "--ca",
        &ca,
        "--token-file",
        &token,
    ]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    drop(dead);
}

#[test]
fn it_is_served_on_after_an_upgrade_with_what_the_files_say_now() {
    let home = with_tokens();
    // A port that is free; somebody else may take it meanwhile, but nobody here does.
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let listen = free.to_string();
    let _daemon = home.start(&["--listen", &listen, "--token-file", &home.text("tokens")]);
    let health = ("GET", "/healthz");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Whoever comes meanwhile is answered, by the one process or the other.
        let asking = scope.spawn(|| {
            let mut turned_away = 0;
            let deadline = Instant::now() + WITHIN;
            while !done.load(Ordering::Acquire) && Instant::now() < deadline {
                let (status, answer) = ask(free, health, Some(ADMIN));
                let in_hand = status == 503 && answer.contains("another process has taken");
                assert!(status == 200 || in_hand, "{answer}");
                turned_away += u32::from(in_hand);
            }
            turned_away
        });
        let _successor = upgraded(&home);
        assert_eq!(ask(free, health, Some(ADMIN)).0, 200);
        assert_eq!(ask(free, health, None).0, 401);
        done.store(true, Ordering::Release);
        assert!(asking.join().unwrap() <= 1, "{}", home.log());
    });
}

#[test]
fn an_upgrade_moves_it_to_another_address_or_ends_it_and_leaves_nothing_listening() {
    let home = with_tokens();
    let section = |listen: &str| {
        let tokens = home.text("tokens");
        format!("[switch]\nlisten = \"{listen}\"\ntoken_file = \"{tokens}\"\n")
    };
    let free = || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let first = free();
    home.write(&section(&first.to_string()));
    let _daemon = home.start(&[]);
    assert!(is_served(first));
    // The last is in the way of the one before it until that process has gone; the upgrade behind it keeps what was opened so late.
    let second = free();
    let everywhere = format!("0.0.0.0:{}", second.port());
    let mut before = first;
    let mut successors = vec![];
    for listen in [second.to_string(), everywhere.clone(), everywhere] {
        home.write(&section(&listen));
        successors.push(upgraded(&home));
        until(&home, || is_served(second));
        if before != second {
            until(&home, || TcpStream::connect(before).is_err());
        }
        before = second;
    }
    home.write("");
    successors.push(upgraded(&home));
    home.told(&["port", "list"]);
    until(&home, || TcpStream::connect(second).is_err());
}

fn is_served(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else {
        return false;
    };
    stream.set_read_timeout(Some(WITHIN)).unwrap();
    let head = format!(
        "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {ADMIN}\r\n\r\n"
    );
    let mut answer = String::new();
    // The process before may end with it.
    let asked = stream.write_all(head.as_bytes());
    let heard = stream.read_to_string(&mut answer);
    asked.is_ok() && heard.is_ok() && answer.starts_with("HTTP/1.1 200")
}

fn until(home: &Home, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + WITHIN;
    while !holds() {
        assert!(Instant::now() < deadline, "{}", home.log());
        std::thread::yield_now();
    }
}

fn upgraded(home: &Home) -> Successor {
    let report: serde_json::Value =
        serde_json::from_str(&home.told(&["--json", "upgrade"])).unwrap();
    Successor(report["pid"].as_i64().unwrap().try_into().unwrap())
}

/// The process that took over, killed at the end.
struct Successor(i32);

impl Drop for Successor {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.0).unwrap();
        // It may have ended.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

#[test]
fn the_socket_is_for_a_group_where_one_is_named() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let home = Home::forgetful();
    let own = std::fs::metadata(home.path("")).unwrap().gid().to_string();
    let _daemon = home.start(&["--admin-group", &own]);
    let found = std::fs::metadata(home.path("admin.sock")).unwrap();
    assert_eq!(
        (found.permissions().mode() & 0o777, found.gid().to_string()),
        (0o660, own)
    );
    let refused = Home::forgetful();
    let output = refused.ask(&["run", "--admin-group", "no-such-group"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(1) && said.contains("there is no group"),
        "{said}"
    );
}
