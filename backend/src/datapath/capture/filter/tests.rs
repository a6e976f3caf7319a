//! Expressions against frames whose fields are known, and text that is no expression.

use super::*;
use crate::control::frames::flow;
use proptest::prelude::*;

fn subject<'a>(frame: &'a [u8]) -> Subject<'a> {
    Subject {
        header: frame.get(..116).unwrap_or(frame),
        frame_bytes: frame.len(),
        direction: Direction::In,
        dropped: None,
    }
}

fn wants(text: &str, flow: &str) -> bool {
    let filter = Filter::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    filter.wants(&subject(&flow::frame(flow).unwrap()))
}

const MACS: &str = "mac 52:54:00:00:00:01 > 52:54:00:00:00:02";

#[test]
fn each_condition_is_true_of_what_it_says() {
    let tcp = format!("tcp 10.0.0.1:1000 > 10.0.1.2:80 {MACS} vlan 7");
    for (text, expected) in [
        ("ip", true),
        ("ip6", false),
        ("tcp", true),
        ("udp", false),
        ("icmp", false),
        ("host 10.0.0.1", true),
        ("host 10.0.0.3", false),
        ("src host 10.0.0.1", true),
        ("src 10.0.0.1", true),
        ("dst 10.0.0.1", false),
        ("ip dst host 10.0.1.2", true),
        ("arp host 10.0.1.2", false),
        ("net 10.0.0.0/24", true),
        ("src net 10.0.1.0/24", false),
        ("src and dst net 10.0.0.0/8", true),
        ("src and dst net 10.0.0.0/24", false),
        ("src or dst net 10.0.1.0/24", true),
        ("net 0.0.0.0/0", true),
        ("net ::/0", false),
        ("port 80", true),
        ("tcp port 80", true),
        ("udp port 80", false),
        ("src port 80", false),
        ("tcp dst port 80", true),
        ("port 443", false),
        ("ether host 52:54:00:00:00:01", true),
        ("ether src 52:54:00:00:00:01", true),
        ("ether dst host 52:54:00:00:00:01", false),
        ("vlan", true),
        ("vlan 7", true),
        ("vlan 8", false),
        ("vlan 7 and host 10.0.0.1", true),
        ("in", true),
        ("out", false),
        ("drop", false),
        ("not drop", true),
        ("! tcp || !udp", true),
        ("not (tcp and port 80)", false),
        // Left to right, whatever C would have.
        ("tcp or udp and udp", false),
        ("tcp or (udp and udp)", true),
        ("src 10.0.0.1 and dst 10.0.1.2", true),
        ("src 10.0.0.1 and dst 10.0.0.1", false),
    ] {
        assert_eq!(wants(text, &tcp), expected, "{text}");
    }
    let arp = format!("arp 10.0.0.1 > 10.0.0.2 {MACS}");
    for (text, expected) in [
        ("arp", true),
        ("ip", false),
        ("host 10.0.0.2", true),
        ("arp src 10.0.0.1", true),
        ("ip host 10.0.0.2", false),
        ("vlan", false),
        ("port 0", false),
    ] {
        assert_eq!(wants(text, &arp), expected, "{text}");
    }
    let icmp6 = format!("icmp fd00::1 > fd00::2 {MACS}");
    for (text, expected) in [
        ("icmp6", true),
        ("icmp", false),
        ("ip6 host fd00::2", true),
        ("net fd00::/8", true),
        ("dst net fe80::/10", false),
    ] {
        assert_eq!(wants(text, &icmp6), expected, "{text}");
    }
}

#[test]
fn what_became_of_a_frame_can_be_asked_for_also_if_it_is_none() {
    let dropped = Subject {
        header: &[1, 2, 3],
        frame_bytes: 3,
        direction: Direction::Out,
        dropped: Some(DropReason::FrameTooShort),
    };
    for (text, expected) in [
        ("drop", true),
        ("dropped", true),
        ("dropped frame_too_short", true),
        ("dropped rx_ring_full", false),
        ("out and dropped frame_too_short", true),
        ("(dropped) and inbound", false),
        ("host 10.0.0.1", false),
        ("not ip", true),
    ] {
        assert_eq!(
            Filter::parse(text).unwrap().wants(&dropped),
            expected,
            "{text}"
        );
    }
}

#[test]
fn what_is_no_expression_is_refused_with_its_column() {
    for (text, column, part) in [
        ("", 1, "a condition"),
        ("  ", 3, "a condition"),
        ("hots 10.0.0.1", 1, "not known here"),
        ("10.0.0.1", 1, "write `host 10.0.0.1`"),
        ("tcp and 80", 9, "write `port 80`"),
        ("host example.org", 6, "names are not looked up"),
        ("host", 5, "an IP address"),
        ("host and tcp", 6, "expected an IP address before `and`"),
        ("net 10.0.0.1/8", 5, "behind its prefix"),
        ("net 10.0.0.0/33", 5, "is no network"),
        ("net 10.0.0.0", 5, "is no network"),
        ("port http", 6, "is no port"),
        ("port 65536", 6, "is no port"),
        ("vlan 4096", 6, "is no VLAN"),
        ("ether host 1.2.3.4", 12, "is no MAC address"),
        ("tcp host 1.2.3.4", 5, "ports, not addresses"),
        ("arp port 80", 5, "no ports"),
        ("ip host fd00::1", 9, "write `ip6`"),
        ("ip6 host 10.0.0.1", 10, "write `ip`"),
        ("dropped nonsense", 9, "drop-reasons"),
        ("tcp udp", 5, "expected `and` or `or`"),
        ("(tcp", 5, "`)`"),
        ("tcp)", 4, "no `(`"),
        ("not", 4, "a condition"),
        ("tcp & udp", 5, "expected `and` or `or`"),
        ("ünïcode", 1, "not known here"),
        ("ü tcp", 1, "not known here"),
    ] {
        let error = Filter::parse(text).unwrap_err();
        assert_eq!(error.column, column, "{text}: {error}");
        assert!(error.to_string().contains(part), "{text}: {error}");
    }
}

#[test]
fn length_number_and_nesting_are_bounded() {
    let nested = |depth| format!("{}tcp{}", "(".repeat(depth), ")".repeat(depth));
    let many = |count| vec!["tcp"; count].join(" or ");
    assert!(Filter::parse(&nested(MAX_NESTING)).is_ok());
    assert!(Filter::parse(&nested(MAX_NESTING + 1)).is_err());
    assert!(Filter::parse(&format!("{}tcp", "not ".repeat(200))).is_err());
    assert!(Filter::parse(&many(MAX_TESTS)).is_ok());
    assert!(Filter::parse(&many(MAX_TESTS + 1)).is_err());
    assert!(Filter::parse(&format!("tcp{}", " ".repeat(MAX_TEXT_BYTES))).is_err());
    assert!(Filter::parse(&"(".repeat(MAX_TEXT_BYTES)).is_err());
}

/// A condition, and whether it is true of [`KNOWN`].
fn condition() -> impl Strategy<Value = (String, bool)> {
    let known = prop_oneof![
        Just(("udp", true)),
        Just(("tcp", false)),
        Just(("host 10.9.8.7", true)),
        Just(("dst host 10.9.8.7", false)),
        Just(("port 53", true)),
        Just(("src port 53", false)),
        Just(("vlan 9", true)),
        Just(("vlan 10", false)),
        Just(("in", true)),
        Just(("drop", false)),
    ];
    known.prop_map(|(text, value)| (text.to_owned(), value))
}

const KNOWN: &str = "udp 10.9.8.7:1234 > 10.1.1.1:53 vlan 9";

/// An expression, and its value as it is put together.
fn expression() -> impl Strategy<Value = (String, bool)> {
    condition().prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            inner
                .clone()
                .prop_map(|(text, value)| (format!("not ({text})"), !value)),
            (
                inner.clone(),
                proptest::collection::vec((any::<bool>(), inner), 1..4)
            )
                .prop_map(|((first, value), rest)| {
                    let mut all = (format!("({first})"), value);
                    for (is_and, (text, value)) in rest {
                        let (word, value) = if is_and {
                            ("and", all.1 && value)
                        } else {
                            ("||", all.1 || value)
                        };
                        all = (format!("{} {word} ({text})", all.0), value);
                    }
                    all
                }),
        ]
    })
}

proptest! {
    #[test]
    fn an_expression_is_true_where_its_parts_make_it((text, expected) in expression()) {
        prop_assume!(text.len() <= MAX_TEXT_BYTES);
        let frame = flow::frame(KNOWN).unwrap();
        match Filter::parse(&text) {
            Ok(filter) => prop_assert_eq!(filter.wants(&subject(&frame)), expected, "{}", text),
            Err(error) => prop_assert!(error.reason.contains("more than"), "{}: {}", text, error),
        }
    }

    #[test]
    fn any_text_is_an_expression_or_refused_within_it(text in any::<String>()) {
        if let Err(error) = Filter::parse(&text) {
            prop_assert!((1..=text.chars().count() + 1).contains(&error.column));
            prop_assert!(!error.reason.contains(char::is_control));
        }
    }

    #[test]
    fn any_words_are_an_expression_or_refused(
        words in proptest::collection::vec(
            prop_oneof![
                Just("and"), Just("or"), Just("not"), Just("("), Just(")"), Just("src"), Just("dst"), Just("host"), Just("net"),
                Just("port"), Just("ether"), Just("vlan"), Just("tcp"), Just("ip"), Just("dropped"), Just("10.0.0.1"), Just("80"),
                Just("10.0.0.0/8"), Just("52:54:00:00:00:01"), Just("rx_ring_full"), Just("in"),
            ],
            0..20,
        ),
        frame in proptest::collection::vec(any::<u8>(), 0..120),
    ) {
        if let Ok(filter) = Filter::parse(&words.join(" ")) {
            filter.wants(&subject(&frame));
        }
    }
}
