//! From text to an expression.
//!
//! ```text
//! expression = term { ("and" | "&&" | "or" | "||") term }
//! term       = ("not" | "!") term | "(" expression ")" | primitive
//! primitive  = ["ip" | "ip6" | "arp"] [side] ["host"] ADDRESS | ["ip" | "ip6" | "arp"] [side] "net" ADDRESS/BITS
//!            | ["tcp" | "udp"] [side] "port" NUMBER | "ether" [side] ["host"] MAC | "vlan" [ID]
//!            | "ip" | "ip6" | "arp" | "tcp" | "udp" | "icmp" | "icmp6" | "in" | "out" | "drop" | "dropped" [REASON]
//! side       = "src" | "dst" | "src or dst" | "src and dst"
//! ```

use super::{
    Expression, FilterError, Link, MAX_NESTING, MAX_TESTS, MAX_TEXT_BYTES, Prefix, Protocol, Side,
    Test,
};
use crate::datapath::capture::Direction;
use std::net::IpAddr;
use switch_core::{DropReason, MacAddress};

/// A word, or a sign, and the column of its first character.
#[derive(Clone, Copy, Debug)]
struct Token<'a> {
    text: &'a str,
    column: usize,
}

/// Words that are no values: nothing else may stand where one is expected.
const KEYWORDS: [&str; 22] = [
    "and", "or", "not", "&&", "||", "!", "(", ")", "src", "dst", "host", "net", "port", "ether",
    "vlan", "ip", "ip6", "arp", "tcp", "udp", "icmp", "icmp6",
];

/// The expression that `text` is.
pub(super) fn expression(text: &str) -> Result<Expression, FilterError> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(FilterError {
            column: 1,
            reason: format!("it is longer than {MAX_TEXT_BYTES} bytes; write a shorter one"),
        });
    }
    let tokens = tokens(text);
    let mut parser = Parser {
        tokens: &tokens,
        end: text.chars().count() + 1,
        tests: 0,
    };
    let expression = parser.expression(0)?;
    match parser.tokens.first() {
        None => Ok(expression),
        Some(token) if token.text == ")" => Err(token.error("there is no `(` for this `)`")),
        Some(token) => {
            let word = printable(token.text);
            Err(token.error(format!("expected `and` or `or` before `{word}`")))
        }
    }
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut column = 1;
    while let Some(first) = rest.chars().next() {
        let len = match first {
            space if space.is_whitespace() => {
                rest = rest.get(space.len_utf8()..).unwrap_or_default();
                column += 1;
                continue;
            }
            '(' | ')' | '!' => 1,
            '&' | '|' => rest.chars().take(2).take_while(|c| *c == first).count(),
            _ => rest
                .find(|c: char| c.is_whitespace() || "()!&|".contains(c))
                .unwrap_or(rest.len()),
        };
        let (word, after) = rest.split_at_checked(len).unwrap_or((rest, ""));
        tokens.push(Token { text: word, column });
        column += word.chars().count();
        rest = after;
    }
    tokens
}

impl Token<'_> {
    fn error(&self, reason: impl Into<String>) -> FilterError {
        FilterError {
            column: self.column,
            reason: reason.into(),
        }
    }
}

/// As it may be said again: no control characters, and not all of a long one.
fn printable(text: &str) -> String {
    const MOST: usize = 40;
    let shown: String = text.chars().take(MOST).collect();
    let cut = if shown.len() < text.len() { "..." } else { "" };
    let shown = shown.replace(char::is_control, "?");
    format!("{shown}{cut}")
}

struct Parser<'a> {
    /// Those left.
    tokens: &'a [Token<'a>],
    /// The column behind the last character.
    end: usize,
    tests: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.tokens.first().map(|token| token.text)
    }

    fn next(&mut self) -> Option<Token<'a>> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(*first)
    }

    /// Takes the next token if it is one of these.
    fn take(&mut self, words: &[&str]) -> bool {
        let is_there = self.peek().is_some_and(|word| words.contains(&word));
        if is_there {
            self.next();
        }
        is_there
    }

    fn missing(&self, what: &str) -> FilterError {
        FilterError {
            column: self.end,
            reason: format!("it ends where {what} is expected"),
        }
    }

    fn expression(&mut self, depth: usize) -> Result<Expression, FilterError> {
        let first = self.term(depth)?;
        let mut rest = Vec::new();
        loop {
            let link = if self.take(&["and", "&&"]) {
                Link::And
            } else if self.take(&["or", "||"]) {
                Link::Or
            } else {
                break;
            };
            rest.push((link, self.term(depth)?));
        }
        Ok(if rest.is_empty() {
            first
        } else {
            Expression::Chain(Box::new(first), rest)
        })
    }

    fn term(&mut self, depth: usize) -> Result<Expression, FilterError> {
        let Some(token) = self.tokens.first().copied() else {
            return Err(self.missing("a condition such as `host 10.0.0.1`"));
        };
        if matches!(token.text, "not" | "!" | "(") && depth >= MAX_NESTING {
            return Err(token.error(format!(
                "more than {MAX_NESTING} parentheses and negations are inside each other; write it flatter"
            )));
        }
        if self.take(&["not", "!"]) {
            return Ok(Expression::Not(Box::new(self.term(depth + 1)?)));
        }
        if self.take(&["("]) {
            let inner = self.expression(depth + 1)?;
            return match self.next() {
                Some(Token { text: ")", .. }) => Ok(inner),
                Some(other) => {
                    let word = printable(other.text);
                    Err(other.error(format!("expected `and`, `or` or `)` before `{word}`")))
                }
                None => Err(self.missing("`)`")),
            };
        }
        self.tests += 1;
        if self.tests > MAX_TESTS {
            return Err(token.error(format!(
                "there are more than {MAX_TESTS} conditions; write fewer, or use `net`"
            )));
        }
        self.primitive().map(Expression::Test)
    }

    fn primitive(&mut self) -> Result<Test, FilterError> {
        let Some(token) = self.next() else {
            return Err(self.missing("a condition"));
        };
        match token.text {
            "in" | "inbound" => Ok(Test::Direction(Direction::In)),
            "out" | "outbound" => Ok(Test::Direction(Direction::Out)),
            "drop" => Ok(Test::Dropped(None)),
            "dropped" => self.dropped(),
            "vlan" => self.vlan(),
            "ether" => self.ether(),
            "icmp" => Ok(Test::Protocol(Protocol::Icmp)),
            "icmp6" => Ok(Test::Protocol(Protocol::Icmp6)),
            "ip" => self.of_protocol(Protocol::Ip),
            "ip6" => self.of_protocol(Protocol::Ip6),
            "arp" => self.of_protocol(Protocol::Arp),
            "tcp" => self.of_protocol(Protocol::Tcp),
            "udp" => self.of_protocol(Protocol::Udp),
            "src" | "dst" => {
                let side = self.side_after(token.text);
                self.at(None, side)
            }
            "host" => self.host(None, Side::Either),
            "net" => self.net(None, Side::Either),
            "port" => self.port(None, Side::Either),
            other => Err(token.error(unknown(other))),
        }
    }

    /// Behind a protocol: its ends, or nothing of it.
    fn of_protocol(&mut self, protocol: Protocol) -> Result<Test, FilterError> {
        match self.side() {
            Some(side) => self.at(Some(protocol), side),
            None if matches!(self.peek(), Some("host" | "net" | "port")) => {
                self.at(Some(protocol), Side::Either)
            }
            None => Ok(Test::Protocol(protocol)),
        }
    }

    /// Behind a side: what is at that end.
    fn at(&mut self, protocol: Option<Protocol>, side: Side) -> Result<Test, FilterError> {
        let Some(token) = self.tokens.first().copied() else {
            return Err(self.missing("`host`, `net` or `port`"));
        };
        let is_transport = matches!(protocol, Some(Protocol::Tcp | Protocol::Udp));
        match token.text {
            "port" if protocol.is_some() && !is_transport => {
                Err(token.error("IP and ARP have no ports; write `tcp`, `udp` or neither"))
            }
            "host" | "net" if is_transport => Err(token.error(
                "TCP and UDP have ports, not addresses; write `tcp and host 10.0.0.1` or the like",
            )),
            "port" => {
                self.next();
                self.port(protocol, side)
            }
            "net" => {
                self.next();
                self.net(protocol, side)
            }
            _ if is_transport => Err(token.error("expected `port`")),
            // `host` may be left out (pcap-filter(7)).
            _ => {
                self.take(&["host"]);
                self.host(protocol, side)
            }
        }
    }

    /// A side, if one is next.
    fn side(&mut self) -> Option<Side> {
        match self.peek() {
            Some(first @ ("src" | "dst")) => {
                self.next();
                Some(self.side_after(first))
            }
            _ => None,
        }
    }

    /// `first` was `src` or `dst`: whether the other one follows. In `src 10.0.0.1 and dst 10.0.0.2` an address is between them.
    fn side_after(&mut self, first: &str) -> Side {
        let (lone, other) = match first {
            "src" => (Side::Source, "dst"),
            _ => (Side::Destination, "src"),
        };
        match self.tokens {
            [link, next, rest @ ..] if next.text == other => {
                let both = match link.text {
                    "or" | "||" => Side::Either,
                    "and" | "&&" => Side::Both,
                    _ => return lone,
                };
                self.tokens = rest;
                both
            }
            _ => lone,
        }
    }

    /// The next token, which has to be a value.
    fn value(&mut self, what: &str) -> Result<Token<'a>, FilterError> {
        match self.next() {
            None => Err(self.missing(what)),
            Some(token) if KEYWORDS.contains(&token.text) => {
                Err(token.error(format!("expected {what} before `{}`", token.text)))
            }
            Some(token) => Ok(token),
        }
    }

    fn host(&mut self, protocol: Option<Protocol>, side: Side) -> Result<Test, FilterError> {
        let token = self.value("an IP address")?;
        let address: IpAddr = token.text.parse().map_err(|_| {
            let word = printable(token.text);
            token.error(format!(
                "`{word}` is no IP address; names are not looked up here"
            ))
        })?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        network(&token, protocol, side, Prefix { address, bits })
    }

    fn net(&mut self, protocol: Option<Protocol>, side: Side) -> Result<Test, FilterError> {
        let token = self.value("a network")?;
        let parsed = token.text.split_once('/').and_then(|(address, bits)| {
            let address: IpAddr = address.parse().ok()?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            let bits = bits.parse::<u8>().ok().filter(|bits| *bits <= most)?;
            Some(Prefix { address, bits })
        });
        let prefix = parsed.ok_or_else(|| {
            let word = printable(token.text);
            token.error(format!(
                "`{word}` is no network; write it as 10.0.0.0/8 or fd00::/8"
            ))
        })?;
        if !prefix.is_clean() {
            return Err(token.error(format!(
                "`{}` has bits behind its prefix; set them to 0, or use `host`",
                token.text
            )));
        }
        network(&token, protocol, side, prefix)
    }

    fn port(&mut self, protocol: Option<Protocol>, side: Side) -> Result<Test, FilterError> {
        let token = self.value("a port number")?;
        let port = token.text.parse().map_err(|_| {
            let word = printable(token.text);
            token.error(format!(
                "`{word}` is no port; write a number from 0 to 65535"
            ))
        })?;
        Ok(Test::Port(protocol, side, port))
    }

    fn ether(&mut self) -> Result<Test, FilterError> {
        let side = self.side().unwrap_or(Side::Either);
        self.take(&["host"]);
        let token = self.value("a MAC address")?;
        let mac: MacAddress = token.text.parse().map_err(|_| {
            let word = printable(token.text);
            token.error(format!(
                "`{word}` is no MAC address; write it as 52:54:00:12:34:56"
            ))
        })?;
        Ok(Test::Mac(side, mac))
    }

    fn vlan(&mut self) -> Result<Test, FilterError> {
        let is_number = |word: &str| word.starts_with(|c: char| c.is_ascii_digit());
        if !self.peek().is_some_and(is_number) {
            return Ok(Test::Vlan(None));
        }
        let token = self.value("a VLAN")?;
        let id = token.text.parse().ok().filter(|id| *id < 4096u16);
        let id = id.ok_or_else(|| {
            let word = printable(token.text);
            token.error(format!(
                "`{word}` is no VLAN; write a number from 0 to 4095"
            ))
        })?;
        Ok(Test::Vlan(Some(id)))
    }

    fn dropped(&mut self) -> Result<Test, FilterError> {
        let ends = |word: &str| matches!(word, "and" | "or" | "&&" | "||" | ")");
        if self.peek().is_none_or(ends) {
            return Ok(Test::Dropped(None));
        }
        let token = self.value("a reason")?;
        let reason = DropReason::by_name(token.text).ok_or_else(|| {
            let word = printable(token.text);
            token.error(format!(
                "`{word}` is no reason to drop a frame; `ringswitch drop-reasons` lists them"
            ))
        })?;
        Ok(Test::Dropped(Some(reason)))
    }
}

/// What is at an end, if that protocol has such addresses.
fn network(
    token: &Token<'_>,
    protocol: Option<Protocol>,
    side: Side,
    prefix: Prefix,
) -> Result<Test, FilterError> {
    match (protocol, prefix.address) {
        (Some(Protocol::Ip | Protocol::Arp), IpAddr::V6(_)) => {
            Err(token.error("this is an IPv6 address; write `ip6`"))
        }
        (Some(Protocol::Ip6), IpAddr::V4(_)) => {
            Err(token.error("this is an IPv4 address; write `ip` or `arp`"))
        }
        _ => Ok(Test::Net(protocol, side, prefix)),
    }
}

fn unknown(word: &str) -> String {
    let shown = printable(word);
    if word.parse::<IpAddr>().is_ok() {
        format!("write `host {shown}`")
    } else if word.parse::<MacAddress>().is_ok() {
        format!("write `ether host {shown}`")
    } else if word.parse::<u16>().is_ok() {
        format!("write `port {shown}` or `vlan {shown}`")
    } else {
        format!(
            "`{shown}` is not known here; use host, net, port, tcp, udp, icmp, icmp6, arp, ip, ip6, ether, vlan, src, dst, in, out, drop, dropped, and, or, not"
        )
    }
}
