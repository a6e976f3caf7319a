//! What a configuration may say, and how a refusal reads: file, line, reason and remedy.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test that cannot go on fails.
use ringswitch::config::{Configuration, Overrides, PortKind, load};
use std::collections::BTreeSet;
use std::path::PathBuf;
use vmm_sys_util::tempdir::TempDir;

struct Written {
    _folder: TempDir,
    path: PathBuf,
}

fn written(text: &str) -> Written {
    let folder = TempDir::new_with_prefix(std::env::temp_dir().join("ringswitch-config-")).unwrap();
    let path = folder.as_path().join("switch.toml");
    std::fs::write(&path, text).unwrap();
    Written {
        _folder: folder,
        path,
    }
}

fn online() -> BTreeSet<usize> {
    BTreeSet::from([0, 1, 2, 5])
}

fn load_text(text: &str, overrides: Overrides) -> Result<Configuration, String> {
    let file = written(text);
    load(Some(&file.path), overrides, &online()).map_err(|error| {
        error
            .to_string()
            .replace(&file.path.display().to_string(), "switch.toml")
    })
}

fn port_names(configuration: &Configuration) -> Vec<&str> {
    configuration
        .ports
        .iter()
        .map(|port| port.config.name.as_str())
        .collect()
}

const THE_ISSUES_EXAMPLE: &str = r#"
[switch]
workers = 1
cpus = [1]
admin = "/run/ringswitch/admin.sock"
[[port]]
name = "vm1"
type = "vhost-user"
socket = "/run/ringswitch/vm1.sock"
mode = "server"
queue_pairs = 2
vlan = { access = 10 }
[[port]]
name = "host0"
type = "tap"
interface = "rs-host0"
"#;

#[test]
fn the_example_of_the_documentation_is_accepted() {
    let configuration = load_text(THE_ISSUES_EXAMPLE, Overrides::default()).unwrap();
    assert_eq!(
        (
            configuration.switch.workers,
            configuration.switch.cpus.as_slice()
        ),
        (1, [1].as_slice())
    );
    assert_eq!(port_names(&configuration), ["vm1", "host0"]);
}

#[test]
fn without_a_file_everything_has_its_default() {
    let configuration = load(None, Overrides::default(), &online()).unwrap();
    assert_eq!(configuration.switch.workers, 1);
    assert_eq!(
        configuration.switch.admin.to_string(),
        "/run/ringswitch/admin.sock"
    );
    assert_eq!(
        (
            configuration.switch.poll_us,
            configuration.switch.mac_ageing_s
        ),
        (50, 300)
    );
    assert!(configuration.switch.cpus.is_empty() && configuration.ports.is_empty());
}

#[test]
fn flags_go_over_the_file() {
    let overrides = Overrides {
        workers: Some(2),
        cpus: Some(vec![0, 2]),
        admin: Some("/tmp/other.sock".into()),
        ports: vec![
            "name=vm1,type=vhost-user,socket=/run/flag.sock".into(),
            "name=vm9,type=vhost-user,socket=/run/vm9.sock".into(),
        ],
        ..Overrides::default()
    };
    let configuration = load_text(THE_ISSUES_EXAMPLE, overrides).unwrap();
    assert_eq!(
        (
            configuration.switch.workers,
            configuration.switch.cpus.as_slice()
        ),
        (2, [0, 2].as_slice())
    );
    assert_eq!(configuration.switch.admin.to_string(), "/tmp/other.sock");
    assert_eq!(port_names(&configuration), ["host0", "vm1", "vm9"]);
    let PortKind::VhostUser { socket, .. } = &configuration.ports[1].config.kind else {
        panic!("vm1 is vhost-user")
    };
    assert_eq!(socket.to_string(), "/run/flag.sock");
}

#[test]
fn as_many_workers_as_cpus_unless_told_otherwise() {
    let configuration = load_text("[switch]\ncpus = [0, 5]", Overrides::default()).unwrap();
    assert_eq!(configuration.switch.workers, 2);
}

/// Each line: the file, where the fault is, what the message says of it, and of the way out.
const REFUSED: &[(&str, &str, &str, &str)] = &[
    ("[switch\n", "switch.toml:1", "", "docs/configuration.md"),
    (
        "\n[switch]\nworker = 1\n",
        "switch.toml:3",
        "unknown field `worker`",
        "`workers`",
    ),
    (
        "[swich]\n",
        "switch.toml:1",
        "unknown field `swich`",
        "`switch`",
    ),
    (
        "[switch]\nworkers = \"two\"\n",
        "switch.toml:2",
        "invalid type",
        "docs/configuration.md",
    ),
    (
        "[[port]]\nname = \"a\"\ntype = \"vhost-user\"\nsocket = \"/a\"\ndevice_state = true\n",
        "switch.toml:2",
        "no key to sign",
        "head -c 32 /dev/urandom",
    ),
    (
        "[switch]\ndevice_state_key_file = \"key\"\n",
        "switch.toml:2",
        "`device_state_key_file`",
        "such as /etc/ringswitch",
    ),
    (
        "[switch]\ndevice_state_max_age_s = 1\n",
        "switch.toml:2",
        "`device_state_max_age_s`: 1",
        "from 10 to 604800",
    ),
    (
        "[[port]]\nname = \"t\"\ntype = \"tap\"\ninterface = \"t0\"\ndevice_state = true\n",
        "switch.toml:5",
        "a tap port does not have it",
        "",
    ),
    (
        "[switch]\nworkers = 0\n",
        "switch.toml:2",
        "`workers`: 0",
        "from 1 to 64",
    ),
    (
        "[switch]\nworkers = 65\n",
        "switch.toml:2",
        "`workers`: 65",
        "from 1 to 64",
    ),
    (
        "[switch]\nworkers = 99999999999999999999\n",
        "switch.toml:2",
        "",
        "docs/configuration.md",
    ),
    (
        "[switch]\n\ncpus = [3]\n",
        "switch.toml:3",
        "CPU 3 is not online",
        "0, 1, 2, 5",
    ),
    (
        "[switch]\ncpus = [-1]\n",
        "switch.toml:2",
        "CPU -1 is not online",
        "choose among",
    ),
    (
        "[switch]\ncpus = [1, 1]\n",
        "switch.toml:2",
        "CPU 1 is named twice",
        "each worker its own",
    ),
    (
        "[switch]\nworkers = 1\ncpus = [0, 1]\n",
        "switch.toml:3",
        "2 CPUs for 1 workers",
        "one CPU for each worker",
    ),
    (
        "[switch]\ncpus = []\n",
        "switch.toml:2",
        "0 CPUs",
        "one CPU for each worker",
    ),
    (
        "[switch]\nadmin = \"admin.sock\"\n",
        "switch.toml:2",
        "not an absolute path",
        "start it with '/'",
    ),
    (
        "[switch]\npoll_us = 10001\n",
        "switch.toml:2",
        "`poll_us`: 10001",
        "from 0 to 10000",
    ),
    (
        "[switch]\nmac_ageing_s = 9\n",
        "switch.toml:2",
        "`mac_ageing_s`: 9",
        "from 10 to 1000000",
    ),
    (
        "[switch]\nmac_capacity = 15\n",
        "switch.toml:2",
        "`mac_capacity`: 15",
        "from 16 to 1048576",
    ),
    (
        "[switch]\nmac_capacity = 100\nmac_limit_per_port = 101\n",
        "switch.toml:3",
        "101",
        "from 1 to 100",
    ),
    (
        "[[port]]\nname = \"a\"\n",
        "switch.toml:1",
        "`type`: it is missing",
        "\"vhost-user\", \"stream\" or \"tap\"",
    ),
    (
        "\n\n[[port]]\ntype = \"tap\"\n",
        "switch.toml:3",
        "`name`: it is missing",
        "give the port a name",
    ),
    (
        "[[port]]\nname = \"a b\"\ntype = \"tap\"\n",
        "switch.toml:2",
        "\"a b\" is not a port name",
        "letters, digits",
    ),
    (
        "[[port]]\nname = \"a\"\ntype = \"veth\"\n",
        "switch.toml:3",
        "\"veth\" is not a type",
        "\"tap\"",
    ),
    (
        "[[port]]\nname = \"a\"\ntype = \"vhost-user\"\nsoket = \"/a\"\n",
        "switch.toml:4",
        "unknown field `soket`",
        "`socket`",
    ),
    (
        "[[port]]\nname = \"a\"\ntype = \"vhost-user\"\nsocket = \"a.sock\"\n",
        "switch.toml:4",
        "not an absolute path",
        "'/'",
    ),
    (
        "[[port]]\nname = \"a\"\ntype = \"vhost-user\"\nsocket = \"/a\"\nmode = \"listen\"\n",
        "switch.toml:5",
        "mode",
        "\"server\"",
    ),
    (
        "[[port]]\nname = \"a\"\ntype = \"vhost-user\"\nsocket = \"/a\"\nqueue_pairs = 65\n",
        "switch.toml:5",
        "65",
        "from 1 to 64",
    ),
    (
        "[[port]]\nname = \"a\"\ntype = \"vhost-user\"\nsocket = \"/a\"\nmtu = 9217\n",
        "switch.toml:5",
        "9217",
        "from 68 to 9216",
    ),
    (
        "[[port]]\nname = \"a\"\ntype = \"vhost-user\"\nsocket = \"/a\"\nvlan = { access = 4095 }\n",
        "switch.toml:5",
        "4095",
        "1 to 4094",
    ),
    (
        "[[port]]\nname = \"a\"\ntype = \"vhost-user\"\nsocket = \"/a\"\nvlan = { trunk = [1, 0] }\n",
        "switch.toml:5",
        "0 is not",
        "1 to 4094",
    ),
    (
        "[[port]]\nname = \"a\"\ntype = \"vhost-user\"\nsocket = \"/a\"\nvlan = { acess = 1 }\n",
        "switch.toml:5",
        "unknown field",
        "`access`",
    ),
    (
        "[[port]]\nname = \"a\"\ntype = \"vhost-user\"\nsocket = \"/a\"\nvlan = 10\n",
        "switch.toml:5",
        "invalid type",
        "docs/configuration.md",
    ),
    (
        "[[port]]\nname = \"a\"\ntype = \"tap\"\ninterface = \"sixteen-letters-\"\n",
        "switch.toml:4",
        "not an interface name",
        "1 to 15",
    ),
    (
        "[[port]]\nname = \"a\"\ntype = \"tap\"\ninterface = \"t\"\nsocket = \"/a\"\n",
        "switch.toml:5",
        "does not have it",
        "remove it",
    ),
    (
        "[[port]]\nname = \"a\"\ntype = \"tap\"\ninterface = \"t\"\n[[port]]\nname = \"a\"\ntype = \"tap\"\ninterface = \"u\"\n",
        "switch.toml:6",
        "`name` is that of port a (switch.toml:2)",
        "give each port its own",
    ),
    (
        "[[port]]\nname = \"a\"\ntype = \"tap\"\ninterface = \"t\"\n[[port]]\nname = \"b\"\ntype = \"tap\"\ninterface = \"t\"\n",
        "switch.toml:6",
        "`interface` is that of port a (switch.toml:2)",
        "give each port its own",
    ),
    (
        "[switch]\nadmin = \"/s\"\n[[port]]\nname = \"a\"\ntype = \"vhost-user\"\nsocket = \"/s\"\n",
        "switch.toml:4",
        "/s is the admin socket",
        "use another path",
    ),
];

#[test]
fn every_refusal_names_line_reason_and_remedy() {
    for (text, place, reason, remedy) in REFUSED {
        let error = load_text(text, Overrides::default()).expect_err(text);
        assert!(error.starts_with(&format!("{place}: ")), "{text}\n{error}");
        assert!(error.contains(reason), "{text}\n{error}");
        assert!(error.contains(remedy), "{text}\n{error}");
        assert!(!error.contains('\n'), "{text}\n{error}");
    }
}

#[test]
fn a_refused_flag_is_quoted() {
    let overrides = Overrides {
        ports: vec!["name=a,type=tap".into()],
        ..Overrides::default()
    };
    let error = load(None, overrides, &online()).unwrap_err().to_string();
    assert_eq!(
        error,
        "--port name=a,type=tap: `interface`: it is missing; name the TAP interface, such as rs-host0"
    );
    let overrides = Overrides {
        workers: Some(-1),
        ..Overrides::default()
    };
    let error = load(None, overrides, &online()).unwrap_err().to_string();
    assert_eq!(
        error,
        "--workers: `workers`: -1 is out of bounds; use a whole number from 1 to 64"
    );
}

#[test]
fn program_state_and_quotas_are_read_and_bounded() {
    let text = "[switch]\nprogram = \"vpc\"\nstate_dir = \"/var/lib/ringswitch\"\ntenant_max_entries = 5\n[tenant.blue]\nmax_entries = 7\n";
    let switch = load_text(text, Overrides::default()).unwrap().switch;
    assert_eq!(switch.program.to_string(), "vpc");
    assert_eq!(switch.state_dir, Some("/var/lib/ringswitch".into()));
    assert_eq!(
        (switch.quotas.of("blue"), switch.quotas.of("other")),
        (7, 5)
    );
    let overrides = Overrides {
        program: Some("/p.json".into()),
        state_dir: Some("/tmp/s".into()),
        ..Overrides::default()
    };
    let switch = load_text(text, overrides).unwrap().switch;
    assert_eq!(switch.program.to_string(), "/p.json");
    assert_eq!(switch.state_dir, Some("/tmp/s".into()));
    let without = load(None, Overrides::default(), &online()).unwrap().switch;
    assert_eq!(
        (without.program.to_string().as_str(), without.state_dir),
        ("l2", None)
    );
    for (text, expected) in [
        (
            "[switch]\nprogram = \"l3\"",
            "switch.toml:2: `program`: \"l3\" is neither l2 nor vpc",
        ),
        (
            "[switch]\nstate_dir = \"state\"",
            "switch.toml:2: `state_dir`: ",
        ),
        (
            "[switch]\ntenant_max_entries = -1",
            "switch.toml:2: `tenant_max_entries`: -1 is out of bounds",
        ),
        (
            "[tenant.blue]\nmax_entries = -1",
            "switch.toml:2: `max_entries`: -1 is out of bounds",
        ),
        ("[tenant.blue]\nmin_entries = 1", "switch.toml:2: "),
        ("[tenant.blue]", "switch.toml:1: "),
    ] {
        let error = load_text(text, Overrides::default()).unwrap_err();
        assert!(error.starts_with(expected), "{text}: {error}");
    }
}

#[test]
fn bounds_and_timeouts_of_connections_are_read_and_bounded() {
    let text = "[connections]\ncapacity = 5000\nmax_per_zone = 70\ntcp_established = 60\ntcp_windows = \"liberal\"\n";
    let connections = load_text(text, Overrides::default())
        .unwrap()
        .switch
        .connections;
    assert_eq!(
        (
            connections.capacity,
            connections.per_port_limit,
            connections.per_zone_limit
        ),
        (5000, 1250, 70)
    );
    assert_eq!(connections.timeouts.tcp_established.0, 60_000);
    assert_eq!(connections.timeouts.udp_single.0, 30_000);
    for (text, expected) in [
        (
            "[connections]\nudp_stream = 0",
            "switch.toml:2: `udp_stream`: 0 is out of bounds",
        ),
        (
            "[connections]\ncapacity = 99999999999",
            "switch.toml:2: `capacity`: 99999999999 is out of bounds",
        ),
        ("[connections]\ntcp_windows = \"none\"", "switch.toml:2: "),
        ("[connections]\ntcp = 1", "switch.toml:2: "),
    ] {
        let error = load_text(text, Overrides::default()).unwrap_err();
        assert!(error.starts_with(expected), "{text}: {error}");
    }
}

#[test]
fn two_flags_cannot_name_one_port() {
    let port = |socket| format!("name=a,type=vhost-user,socket={socket}");
    let overrides = Overrides {
        ports: vec![port("/a"), port("/b")],
        ..Overrides::default()
    };
    let error = load(None, overrides, &online()).unwrap_err().to_string();
    assert!(
        error.starts_with("--port name=a,type=vhost-user,socket=/b: `name` is that of port a"),
        "{error}"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    for path in ["/nonexistent/switch.toml", "/", "/dev/zero"] {
        let error = load(Some(path.as_ref()), Overrides::default(), &online())
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with(&format!("{path}: cannot be read")) && error.contains("--config"),
            "{error}"
        );
    }
}

#[test]
fn more_ports_than_the_switch_has_are_refused_where_they_begin() {
    let port = |n| format!("[[port]]\nname = \"p{n}\"\ntype = \"tap\"\ninterface = \"t{n}\"\n");
    let text: String = (0..1025).map(port).collect();
    let error = load_text(&text, Overrides::default()).unwrap_err();
    assert!(
        error.starts_with("switch.toml:4098: ") && error.contains("at most 1024"),
        "{error}"
    );
}
