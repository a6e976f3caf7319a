//! The REST interface against its own description: schemathesis reads `/openapi.json` from a real daemon, asks whatever it allows and much
//! that it does not, and finds nothing that is not as described.
use crate::process::Home;
use crate::remote::{ADMIN, over_tcp, with_tokens};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `qemu-scripts/setup` has installed, or what `SCHEMATHESIS` names.
fn schemathesis() -> Option<PathBuf> {
    let named = std::env::var_os("SCHEMATHESIS").map(PathBuf::from);
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/vm-lab/schemathesis");
    named.or_else(|| installed.exists().then_some(installed))
}

#[track_caller]
fn finds_nothing(home: &Home, program: &str) {
    let Some(schemathesis) = schemathesis() else {
        println!("skipped: there is no schemathesis; qemu-scripts/setup installs it");
        return;
    };
    let tokens = home.text("tokens");
    let (_daemon, address) = over_tcp(home, &["--token-file", &tokens, "--program", program]);
    home.told(&["port", "add", &home.vm("vm1")]);
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/schemathesis.toml");
    let run = Command::new(schemathesis)
        .args([
            "--config-file",
            config,
            "run",
            "--phases",
            "examples,coverage,fuzzing",
        ])
        .arg(format!("http://{address}/openapi.json"))
        .args(["--header", &format!("Authorization: Bearer {ADMIN}")])
        .env("NO_COLOR", "1")
        .current_dir(home.path(""))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout).into_owned();
    let complained = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.success(), "{said}\n{complained}\n{}", home.log());
    assert!(said.contains(" passed"), "it tested nothing: {said}");
    assert_eq!(home.get("/healthz")["status"], "ok");
}

#[test]
fn schemathesis_finds_nothing() {
    finds_nothing(&with_tokens(), "vpc");
}
