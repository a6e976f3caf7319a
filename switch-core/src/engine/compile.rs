//! From names to numbers: a validated program in the form that evaluation walks through.
//!
//! Done once, when a program is loaded. Whoever calls this has validated the program, so a name that is not found is a fault of the
//! validation, said as such.

use std::collections::HashMap;

use super::literal::Operand;
use super::model::{
    Commit, Condition, DestinationNat, Format, KeyKind, NewHeader, Primitive, Program, SourceNat,
    Statement,
};
use crate::drop_reason::DropReason;

/// Most header instances a program can have.
pub(crate) const MAX_HEADERS: usize = 64;
/// Most states a parse visits.
pub(crate) const MAX_PARSER_STATES: usize = 24;

/// Why a program could not be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; this should have been found when the program was validated: please report it")]
pub struct CompileError(String);

/// What a header is to the engine, beyond its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderKind {
    Ethernet,
    Vlan,
    Mpls,
    Ipv4,
    Ipv6,
    Tcp,
    Udp,
    Icmp,
    Icmpv6,
    Vxlan,
    /// GENEVE and GRE, which say by an EtherType what they carry.
    Tunnel,
    Other,
}

/// A field of a header: the first bit, counted from the header's start, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeaderField {
    pub header: u16,
    pub bit: u16,
    pub bits: u16,
}

/// A field that the engine provides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StdField {
    InPort,
    OutPort,
    FrameBytes,
    WireBytes,
    ParseError,
    Pass,
}

/// A field that connection tracking provides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CtField {
    Tracked,
    New,
    Established,
    Related,
    Reply,
    Invalid,
    Snat,
    Dnat,
    Mark,
    Data(u8),
}

/// Anything that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Header(HeaderField),
    Meta { index: u16, bits: u16 },
    Std(StdField),
    Ct(CtField),
    Valid(u16),
}

impl Field {
    pub(crate) fn bits(self) -> u16 {
        match self {
            Self::Header(field) => field.bits,
            Self::Meta { bits, .. } => bits,
            Self::Std(StdField::InPort | StdField::OutPort) => 16,
            Self::Std(StdField::FrameBytes | StdField::WireBytes) => 32,
            Self::Std(StdField::ParseError | StdField::Pass) => 8,
            Self::Ct(CtField::Mark | CtField::Data(_)) => 32,
            Self::Ct(_) | Self::Valid(_) => 1,
        }
    }
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Constant(u128),
    Field(Field),
    Param(u16),
}

/// A length that a header states.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Length {
    pub field: HeaderField,
    pub unit_bytes: u16,
    pub plus: u16,
    pub max_bytes: u16,
}

/// A named field of a header, for people.
#[derive(Clone, Debug)]
pub(crate) struct NamedField {
    pub name: String,
    pub field: HeaderField,
    pub format: Format,
}

/// A header instance.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub name: String,
    pub kind: HeaderKind,
    pub bytes: u16,
    pub length: Option<Length>,
    pub fields: Vec<NamedField>,
}

impl Header {
    pub(crate) fn field(&self, name: &str) -> Option<HeaderField> {
        self.fields
            .iter()
            .find(|field| field.name == name)
            .map(|field| field.field)
    }
}

/// What follows a parser state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    State(u16),
    Accept,
    Reject,
}

/// A case: value and mask for each selected field.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub values: Vec<(u128, u128)>,
    pub next: Next,
}

/// A parser state.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub name: String,
    pub extract: Option<u16>,
    pub verify: Vec<Test>,
    pub select: Vec<Field>,
    pub cases: Vec<Case>,
    pub default: Next,
    pub quick: Option<QuickSelect>,
}

/// Nearly all states select on one field of the header that they extract, of 64 bits at most.
#[derive(Clone, Debug)]
pub(crate) struct QuickSelect {
    pub bit: u16,
    pub bits: u16,
    /// Value, mask, and what follows.
    pub cases: Vec<(u64, u64, Next)>,
}

impl QuickSelect {
    fn new(extract: Option<u16>, select: &[Field], cases: &[Case]) -> Option<Self> {
        let &[Field::Header(field)] = select else {
            return None;
        };
        if extract != Some(field.header) || field.bits > 64 {
            return None;
        }
        let cases = cases.iter().map(|case| match case.values.as_slice() {
            &[(value, mask)] => Some((u64::try_from(value).ok()?, mask as u64, case.next)),
            _ => None,
        });
        Some(Self {
            bit: field.bit,
            bits: field.bits,
            cases: cases.collect::<Option<_>>()?,
        })
    }
}

/// A condition.
#[derive(Clone, Debug)]
#[repr(u8)] // As for steps.
pub(crate) enum Test {
    Compare(Comparison, Value, Value),
    Masked(Value, u128, u128),
    All(Vec<Test>),
    Any(Vec<Test>),
    Not(Box<Test>),
}

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// A primitive.
#[derive(Clone, Debug)]
pub(crate) enum Prim {
    Set(Field, Value),
    Add(Field, Value),
    Subtract(Field, Value),
    PushVlan {
        vid: Value,
        pcp: Value,
        tpid: Value,
    },
    PopVlan,
    PushMpls {
        label: Value,
        tc: Value,
        ttl: Value,
    },
    PopMpls {
        ether_type: Value,
    },
    Output(Value),
    Multicast(Value),
    Mirror(Value),
    Resubmit(Vec<u16>),
    Recirculate(Vec<u16>),
    Drop(DropReason),
    Controller {
        reason: u16,
        args: Vec<Value>,
    },
    Meter {
        meter: u16,
        index: Value,
        reason: DropReason,
    },
    Count {
        counter: u16,
        index: Value,
    },
    Track(Value),
    Commit(Box<CommitSpec>),
    Nat,
    Learn {
        domain: Value,
        address: Value,
    },
    Select {
        selector: u16,
        group: Value,
        hash: Vec<Field>,
        into: Vec<Field>,
    },
    Encapsulate(Vec<PushedHeader>),
    Decapsulate(u16),
}

/// What a new connection is to be.
#[derive(Clone, Debug)]
pub(crate) struct CommitSpec {
    pub mark: Option<Value>,
    pub data: Vec<Value>,
    /// Lowest and highest address, lowest and highest port.
    pub source: Option<[Value; 4]>,
    /// Address and port.
    pub destination: Option<[Value; 2]>,
}

/// A header that is put before a frame.
#[derive(Clone, Debug)]
pub(crate) struct PushedHeader {
    pub header: u16,
    pub fields: Vec<(HeaderField, Value)>,
    /// Which fields the program says nothing of are to be computed.
    pub said: Vec<String>,
}

/// A step of a control.
#[derive(Clone, Debug)]
#[repr(u8)] // What it is, is asked more often than anything else: it is not to be found out from what is in it.
pub(crate) enum Step {
    Apply {
        table: u16,
        hit: Vec<Step>,
        miss: Vec<Step>,
        /// By action.
        actions: Vec<(u16, Vec<Step>)>,
    },
    If {
        test: Test,
        text: String,
        then: Vec<Step>,
        otherwise: Vec<Step>,
    },
    Do(Vec<Prim>),
    Find {
        domain: Value,
        address: Value,
        port: Field,
        hit: Vec<Step>,
        miss: Vec<Step>,
    },
    Exit,
}

/// A parameter, or any named field outside headers.
#[derive(Clone, Debug)]
pub(crate) struct Param {
    pub name: String,
    pub bits: u16,
    pub format: Format,
}

/// An action.
#[derive(Clone, Debug)]
pub(crate) struct Action {
    pub name: String,
    pub params: Vec<Param>,
    pub body: Vec<Prim>,
}

/// A key field of a table.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub name: String,
    pub field: Field,
    pub kind: KeyKind,
    pub format: Format,
}

/// A table.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub name: String,
    pub key: Vec<Key>,
    /// Actions, by index.
    pub actions: Vec<u16>,
    pub size: usize,
    pub counters: bool,
    pub timeouts: bool,
}

impl Table {
    /// Whether entries have priorities.
    pub(crate) fn has_priorities(&self) -> bool {
        self.key.iter().any(|key| {
            matches!(
                key.kind,
                KeyKind::Ternary | KeyKind::Range | KeyKind::Optional
            )
        })
    }
}

/// A selector.
#[derive(Clone, Debug)]
pub(crate) struct Selector {
    pub name: String,
    pub member: Vec<Param>,
    pub max_groups: u32,
    pub max_members: u32,
}

/// A compiled program.
#[derive(Clone, Debug)]
pub(crate) struct Compiled {
    pub headers: Vec<Header>,
    pub metadata: Vec<Param>,
    pub states: Vec<State>,
    pub start: u16,
    pub meters: Vec<(String, u32)>,
    pub counters: Vec<(String, u32)>,
    pub selectors: Vec<Selector>,
    pub punt_reasons: Vec<String>,
    pub actions: Vec<Action>,
    pub tables: Vec<Table>,
    pub ingress: Vec<Step>,
    pub egress: Vec<Step>,
    /// Whether connections are tracked.
    pub tracks: bool,
}

impl Compiled {
    /// Compiles a merged program.
    pub(crate) fn new(program: &Program) -> Result<Self, CompileError> {
        let mut compiler = Compiler::new(program)?;
        let states = program
            .parser
            .states
            .iter()
            .map(|state| compiler.state(state))
            .collect::<Result<Vec<_>, _>>()?;
        let start = compiler.state_number("start")?;
        let actions = program
            .actions
            .iter()
            .map(|action| {
                let params = compiler.params(&action.params);
                let scope = Scope(&params);
                Ok(Action {
                    name: action.name.clone(),
                    body: compiler.primitives(&action.body, scope)?,
                    params,
                })
            })
            .collect::<Result<Vec<_>, CompileError>>()?;
        let tables = program
            .tables
            .iter()
            .map(|table| compiler.table(table))
            .collect::<Result<Vec<_>, _>>()?;
        let ingress = compiler.steps(&program.ingress)?;
        let egress = compiler.steps(&program.egress)?;
        let selectors = program
            .selectors
            .iter()
            .map(|selector| Selector {
                name: selector.name.clone(),
                member: compiler.params(&selector.member),
                max_groups: selector.max_groups,
                max_members: selector.max_members,
            })
            .collect();
        let arrays = |arrays: &[super::model::ArrayDecl]| {
            arrays
                .iter()
                .map(|array| (array.name.clone(), array.size))
                .collect()
        };
        Ok(Self {
            metadata: compiler.params(&program.metadata),
            meters: arrays(&program.meters),
            counters: arrays(&program.counters),
            states,
            start,
            selectors,
            actions,
            tables,
            ingress,
            egress,
            tracks: compiler.tracks,
            punt_reasons: compiler.punt_reasons,
            headers: compiler.headers,
        })
    }

    /// The number of a table.
    pub(crate) fn table(&self, name: &str) -> Option<usize> {
        self.tables.iter().position(|table| table.name == name)
    }

    /// The number of an action.
    pub(crate) fn action(&self, name: &str) -> Option<usize> {
        self.actions.iter().position(|action| action.name == name)
    }
}

/// Names of the parameters in reach.
#[derive(Clone, Copy)]
struct Scope<'a>(&'a [Param]);

struct Compiler<'a> {
    program: &'a Program,
    headers: Vec<Header>,
    header_numbers: HashMap<String, u16>,
    metadata: HashMap<String, (u16, u16, Format)>,
    punt_reasons: Vec<String>,
    tracks: bool,
}

fn drop_reason(name: &str) -> Result<DropReason, CompileError> {
    DropReason::by_name(name).ok_or_else(|| missing("drop reason", name))
}

/// Whether a header type has the fields of the built-in one of its name.
fn is_builtin(kind: &super::model::HeaderType) -> bool {
    let shape = |kind: &super::model::HeaderType| {
        let fields = kind.fields.iter();
        let fields: Vec<_> = fields
            .map(|field| (field.name.clone(), field.bits))
            .collect();
        (fields, kind.length.clone())
    };
    super::library::header_types()
        .iter()
        .any(|known| known.name == kind.name && shape(known) == shape(kind))
}

fn missing(what: &str, name: &str) -> CompileError {
    CompileError(format!("there is no {what} `{name}`"))
}

fn position<T>(
    items: &[T],
    what: &str,
    name: &str,
    name_of: impl Fn(&T) -> &str,
) -> Result<u16, CompileError> {
    items
        .iter()
        .position(|item| name_of(item) == name)
        .and_then(|at| u16::try_from(at).ok())
        .ok_or_else(|| missing(what, name))
}

impl<'a> Compiler<'a> {
    fn new(program: &'a Program) -> Result<Self, CompileError> {
        let mut headers = Vec::new();
        for instance in &program.headers {
            headers.push(Self::header(program, instance, headers.len() as u16)?);
        }
        if headers.len() > MAX_HEADERS {
            return Err(CompileError(format!(
                "there are {} headers, and {MAX_HEADERS} at most",
                headers.len()
            )));
        }
        let header_numbers = headers
            .iter()
            .enumerate()
            .map(|(at, header)| (header.name.clone(), at as u16))
            .collect();
        let metadata = program
            .metadata
            .iter()
            .enumerate()
            .map(|(at, meta)| (meta.name.clone(), (at as u16, meta.bits, meta.format)))
            .collect();
        Ok(Self {
            program,
            headers,
            header_numbers,
            metadata,
            punt_reasons: Vec::new(),
            tracks: false,
        })
    }

    fn header(
        program: &Program,
        instance: &super::model::HeaderInstance,
        number: u16,
    ) -> Result<Header, CompileError> {
        let kind = program
            .header_types
            .iter()
            .find(|header| header.name == instance.header_type)
            .ok_or_else(|| missing("header type", &instance.header_type))?;
        let mut bit = 0;
        let fields: Vec<NamedField> = kind
            .fields
            .iter()
            .map(|field| {
                let at = bit;
                bit += field.bits;
                NamedField {
                    name: field.name.clone(),
                    field: HeaderField {
                        header: number,
                        bit: at,
                        bits: field.bits,
                    },
                    format: field.format,
                }
            })
            .collect();
        let length = match &kind.length {
            None => None,
            Some(length) => Some(Length {
                field: fields
                    .iter()
                    .find(|field| field.name == length.field)
                    .ok_or_else(|| missing("field", &length.field))?
                    .field,
                unit_bytes: length.unit_bytes.into(),
                plus: length.plus.into(),
                max_bytes: length.max_bytes.into(),
            }),
        };
        Ok(Header {
            name: instance.name.clone(),
            kind: match kind.name.as_str() {
                // One of a program's own making is not taken for what it is called.
                _ if !is_builtin(kind) => HeaderKind::Other,
                "ethernet" => HeaderKind::Ethernet,
                "vlan" => HeaderKind::Vlan,
                "mpls" => HeaderKind::Mpls,
                "ipv4" => HeaderKind::Ipv4,
                "ipv6" => HeaderKind::Ipv6,
                "tcp" => HeaderKind::Tcp,
                "udp" => HeaderKind::Udp,
                "icmp" => HeaderKind::Icmp,
                "icmpv6" => HeaderKind::Icmpv6,
                "vxlan" => HeaderKind::Vxlan,
                "geneve" | "gre" => HeaderKind::Tunnel,
                _ => HeaderKind::Other,
            },
            bytes: bit / 8,
            length,
            fields,
        })
    }

    fn header_number(&self, name: &str) -> Result<u16, CompileError> {
        self.header_numbers
            .get(name)
            .copied()
            .ok_or_else(|| missing("header", name))
    }

    fn state_number(&self, name: &str) -> Result<u16, CompileError> {
        position(&self.program.parser.states, "parser state", name, |state| {
            &state.name
        })
    }

    fn next(&self, name: &str) -> Result<Next, CompileError> {
        Ok(match name {
            "accept" => Next::Accept,
            "reject" => Next::Reject,
            other => Next::State(self.state_number(other)?),
        })
    }

    fn params(&self, fields: &[super::model::FieldDecl]) -> Vec<Param> {
        fields
            .iter()
            .map(|field| Param {
                name: field.name.clone(),
                bits: field.bits,
                format: field.format,
            })
            .collect()
    }

    /// A field and how people write it.
    fn field(&self, name: &str) -> Result<(Field, Format), CompileError> {
        let unknown = || missing("field", name);
        let (scope, field) = name.split_once('.').ok_or_else(unknown)?;
        let number = |field| (field, Format::Number);
        Ok(match scope {
            "meta" => {
                let &(index, bits, format) = self.metadata.get(field).ok_or_else(unknown)?;
                (Field::Meta { index, bits }, format)
            }
            "std" => match field {
                "in_port" => (Field::Std(StdField::InPort), Format::Port),
                "out_port" => (Field::Std(StdField::OutPort), Format::Port),
                "frame_bytes" => number(Field::Std(StdField::FrameBytes)),
                "wire_bytes" => number(Field::Std(StdField::WireBytes)),
                "parse_error" => number(Field::Std(StdField::ParseError)),
                "pass" => number(Field::Std(StdField::Pass)),
                _ => return Err(unknown()),
            },
            "ct" => number(Field::Ct(match field {
                "tracked" => CtField::Tracked,
                "new" => CtField::New,
                "established" => CtField::Established,
                "related" => CtField::Related,
                "reply" => CtField::Reply,
                "invalid" => CtField::Invalid,
                "snat" => CtField::Snat,
                "dnat" => CtField::Dnat,
                "mark" => CtField::Mark,
                "data0" => CtField::Data(0),
                "data1" => CtField::Data(1),
                "data2" => CtField::Data(2),
                "data3" => CtField::Data(3),
                _ => return Err(unknown()),
            })),
            header => {
                let header = self.header_number(header)?;
                if field == "valid" {
                    number(Field::Valid(header))
                } else {
                    let named = self
                        .headers
                        .get(usize::from(header))
                        .and_then(|header| header.fields.iter().find(|named| named.name == field))
                        .ok_or_else(unknown)?;
                    (Field::Header(named.field), named.format)
                }
            }
        })
    }

    fn value(&self, operand: &Operand, scope: Scope<'_>) -> Result<Value, CompileError> {
        Ok(match operand {
            Operand::Constant(number) => Value::Constant(*number),
            Operand::Field(name) => Value::Field(self.field(name)?.0),
            Operand::Param(name) => {
                Value::Param(position(scope.0, "parameter", name, |param| &param.name)?)
            }
        })
    }

    fn test(&self, condition: &Condition, scope: Scope<'_>) -> Result<Test, CompileError> {
        let compare = |how, a, b| {
            Ok(Test::Compare(
                how,
                self.value(a, scope)?,
                self.value(b, scope)?,
            ))
        };
        let tests = |conditions: &[Condition]| {
            conditions
                .iter()
                .map(|condition| self.test(condition, scope))
                .collect::<Result<Vec<_>, _>>()
        };
        match condition {
            Condition::Valid(header) => Ok(Test::Compare(
                Comparison::Eq,
                Value::Field(Field::Valid(self.header_number(header)?)),
                Value::Constant(1),
            )),
            Condition::Eq(a, b) => compare(Comparison::Eq, a, b),
            Condition::Ne(a, b) => compare(Comparison::Ne, a, b),
            Condition::Lt(a, b) => compare(Comparison::Lt, a, b),
            Condition::Le(a, b) => compare(Comparison::Le, a, b),
            Condition::Gt(a, b) => compare(Comparison::Gt, a, b),
            Condition::Ge(a, b) => compare(Comparison::Ge, a, b),
            Condition::Masked(operand, mask, value) => {
                let number = |literal: &super::literal::Literal| {
                    literal
                        .number()
                        .ok_or_else(|| missing("number", &literal.to_string()))
                };
                Ok(Test::Masked(
                    self.value(operand, scope)?,
                    number(mask)?,
                    number(value)?,
                ))
            }
            Condition::All(conditions) => Ok(Test::All(tests(conditions)?)),
            Condition::Any(conditions) => Ok(Test::Any(tests(conditions)?)),
            Condition::Not(condition) => Ok(Test::Not(Box::new(self.test(condition, scope)?))),
        }
    }

    fn state(&mut self, state: &super::model::ParserState) -> Result<State, CompileError> {
        let number = |literal: &super::literal::Literal| {
            literal
                .number()
                .ok_or_else(|| missing("number", &literal.to_string()))
        };
        let cases = state
            .cases
            .iter()
            .map(|case| {
                let values = case
                    .values
                    .iter()
                    .map(|value| match value {
                        super::model::CaseValue::Exact(value) => Ok((number(value)?, u128::MAX)),
                        super::model::CaseValue::Masked { value, mask } => {
                            Ok((number(value)?, number(mask)?))
                        }
                    })
                    .collect::<Result<_, CompileError>>()?;
                Ok(Case {
                    values,
                    next: self.next(&case.next)?,
                })
            })
            .collect::<Result<Vec<_>, CompileError>>()?;
        let extract = match &state.extract {
            Some(header) => Some(self.header_number(header)?),
            None => None,
        };
        let select = state
            .select
            .iter()
            .map(|name| Ok(self.field(name)?.0))
            .collect::<Result<Vec<_>, CompileError>>()?;
        Ok(State {
            name: state.name.clone(),
            quick: QuickSelect::new(extract, &select, &cases),
            extract,
            verify: state
                .verify
                .iter()
                .map(|condition| self.test(condition, Scope(&[])))
                .collect::<Result<_, _>>()?,
            select,
            cases,
            default: self.next(&state.default)?,
        })
    }

    fn table(&self, table: &super::model::TableDecl) -> Result<Table, CompileError> {
        let key = table
            .key
            .iter()
            .map(|key| {
                let (field, format) = self.field(&key.field)?;
                Ok(Key {
                    name: key.name.clone().unwrap_or_else(|| key.field.clone()),
                    field,
                    kind: key.kind,
                    format,
                })
            })
            .collect::<Result<_, CompileError>>()?;
        let actions = table
            .actions
            .iter()
            .map(|name| self.action_number(name))
            .collect::<Result<_, _>>()?;
        Ok(Table {
            name: table.name.clone(),
            key,
            actions,
            size: table.size as usize,
            counters: table.counters,
            timeouts: table.timeouts,
        })
    }

    fn action_number(&self, name: &str) -> Result<u16, CompileError> {
        position(&self.program.actions, "action", name, |action| &action.name)
    }

    fn steps(&mut self, statements: &[Statement]) -> Result<Vec<Step>, CompileError> {
        statements
            .iter()
            .map(|statement| self.step(statement))
            .collect()
    }

    fn step(&mut self, statement: &Statement) -> Result<Step, CompileError> {
        Ok(match statement {
            Statement::Apply(apply) => Step::Apply {
                table: position(&self.program.tables, "table", &apply.table, |table| {
                    &table.name
                })?,
                hit: self.steps(&apply.hit)?,
                miss: self.steps(&apply.miss)?,
                actions: apply
                    .actions
                    .iter()
                    .map(|(name, steps)| Ok((self.action_number(name)?, self.steps(steps)?)))
                    .collect::<Result<_, CompileError>>()?,
            },
            Statement::If(branch) => Step::If {
                test: self.test(&branch.condition, Scope(&[]))?,
                text: condition_text(&branch.condition),
                then: self.steps(&branch.then)?,
                otherwise: self.steps(&branch.otherwise)?,
            },
            Statement::Do(primitives) => Step::Do(self.primitives(primitives, Scope(&[]))?),
            Statement::Find(find) => Step::Find {
                domain: self.value(&find.domain, Scope(&[]))?,
                address: self.value(&find.address, Scope(&[]))?,
                port: self.field(&find.port)?.0,
                hit: self.steps(&find.hit)?,
                miss: self.steps(&find.miss)?,
            },
            Statement::Exit => Step::Exit,
        })
    }

    fn primitives(
        &mut self,
        primitives: &[Primitive],
        scope: Scope<'_>,
    ) -> Result<Vec<Prim>, CompileError> {
        primitives
            .iter()
            .map(|primitive| self.primitive(primitive, scope))
            .collect()
    }

    fn primitive(&mut self, primitive: &Primitive, scope: Scope<'_>) -> Result<Prim, CompileError> {
        let array = |arrays: &[super::model::ArrayDecl], what, name: &str| {
            position(arrays, what, name, |array| &array.name)
        };
        Ok(match primitive {
            Primitive::Set { field, to } => Prim::Set(self.field(field)?.0, self.value(to, scope)?),
            Primitive::Add { field, value } => {
                Prim::Add(self.field(field)?.0, self.value(value, scope)?)
            }
            Primitive::Subtract { field, value } => {
                Prim::Subtract(self.field(field)?.0, self.value(value, scope)?)
            }
            Primitive::PushVlan { vid, pcp, tpid } => Prim::PushVlan {
                vid: self.value(vid, scope)?,
                pcp: self.value(pcp, scope)?,
                tpid: match tpid {
                    Some(tpid) => self.value(tpid, scope)?,
                    None => Value::Constant(0x8100),
                },
            },
            Primitive::PopVlan {} => Prim::PopVlan,
            Primitive::PushMpls { label, tc, ttl } => Prim::PushMpls {
                label: self.value(label, scope)?,
                tc: self.value(tc, scope)?,
                ttl: self.value(ttl, scope)?,
            },
            Primitive::PopMpls { ether_type } => Prim::PopMpls {
                ether_type: self.value(ether_type, scope)?,
            },
            Primitive::Output { port } => Prim::Output(self.value(port, scope)?),
            Primitive::Multicast { group } => Prim::Multicast(self.value(group, scope)?),
            Primitive::Mirror { port } => Prim::Mirror(self.value(port, scope)?),
            Primitive::Resubmit { keep } => Prim::Resubmit(self.kept(keep)?),
            Primitive::Recirculate { keep } => Prim::Recirculate(self.kept(keep)?),
            Primitive::Drop { reason } => Prim::Drop(drop_reason(reason)?),
            Primitive::Controller { reason, args } => {
                let number = match self.punt_reasons.iter().position(|known| known == reason) {
                    Some(number) => number,
                    None => {
                        self.punt_reasons.push(reason.clone());
                        self.punt_reasons.len() - 1
                    }
                };
                Prim::Controller {
                    reason: number as u16,
                    args: args
                        .iter()
                        .map(|arg| self.value(arg, scope))
                        .collect::<Result<_, _>>()?,
                }
            }
            Primitive::Meter {
                meter,
                index,
                reason,
            } => Prim::Meter {
                meter: array(&self.program.meters, "meter", meter)?,
                index: self.value(index, scope)?,
                reason: match reason {
                    Some(reason) => drop_reason(reason)?,
                    None => DropReason::RateExceeded,
                },
            },
            Primitive::Count { counter, index } => Prim::Count {
                counter: array(&self.program.counters, "counter", counter)?,
                index: self.value(index, scope)?,
            },
            Primitive::Track { zone } => {
                self.tracks = true;
                Prim::Track(self.value(zone, scope)?)
            }
            Primitive::Commit(commit) => Prim::Commit(Box::new(self.commit(commit, scope)?)),
            Primitive::Nat {} => Prim::Nat,
            Primitive::Learn {
                domain, address, ..
            } => Prim::Learn {
                domain: self.value(domain, scope)?,
                address: self.value(address, scope)?,
            },
            Primitive::Select {
                selector,
                group,
                hash,
                into,
            } => Prim::Select {
                selector: position(&self.program.selectors, "selector", selector, |selector| {
                    &selector.name
                })?,
                group: self.value(group, scope)?,
                hash: self.fields(hash)?,
                into: self.fields(into)?,
            },
            Primitive::Encapsulate { headers } => Prim::Encapsulate(
                headers
                    .iter()
                    .map(|header| self.pushed(header, scope))
                    .collect::<Result<_, _>>()?,
            ),
            Primitive::Decapsulate { to } => Prim::Decapsulate(self.header_number(to)?),
        })
    }

    fn fields(&self, names: &[String]) -> Result<Vec<Field>, CompileError> {
        names.iter().map(|name| Ok(self.field(name)?.0)).collect()
    }

    fn kept(&self, names: &[String]) -> Result<Vec<u16>, CompileError> {
        names
            .iter()
            .map(|name| {
                let name = name.strip_prefix("meta.").unwrap_or(name);
                self.metadata
                    .get(name)
                    .map(|&(index, _, _)| index)
                    .ok_or_else(|| missing("metadata", name))
            })
            .collect()
    }

    fn commit(&self, commit: &Commit, scope: Scope<'_>) -> Result<CommitSpec, CompileError> {
        let value = |operand| self.value(operand, scope);
        Ok(CommitSpec {
            mark: commit.mark.as_ref().map(value).transpose()?,
            data: commit.data.iter().map(value).collect::<Result<_, _>>()?,
            source: match &commit.source {
                Some(SourceNat {
                    low,
                    high,
                    low_port,
                    high_port,
                }) => Some([
                    value(low)?,
                    value(high)?,
                    value(low_port)?,
                    value(high_port)?,
                ]),
                None => None,
            },
            destination: match &commit.destination {
                Some(DestinationNat { address, port }) => Some([value(address)?, value(port)?]),
                None => None,
            },
        })
    }

    fn pushed(&self, header: &NewHeader, scope: Scope<'_>) -> Result<PushedHeader, CompileError> {
        let number = self.header_number(&header.header)?;
        let fields = header
            .fields
            .iter()
            .map(|(name, operand)| {
                let field = self
                    .headers
                    .get(usize::from(number))
                    .and_then(|header| header.field(name))
                    .ok_or_else(|| missing("field", name))?;
                Ok((field, self.value(operand, scope)?))
            })
            .collect::<Result<_, CompileError>>()?;
        Ok(PushedHeader {
            header: number,
            fields,
            said: header.fields.keys().cloned().collect(),
        })
    }
}

/// A condition as people write it.
pub(crate) fn condition_text(condition: &Condition) -> String {
    let list = |conditions: &[Condition], word: &str| {
        let parts: Vec<_> = conditions.iter().map(condition_text).collect();
        format!("({})", parts.join(word))
    };
    match condition {
        Condition::Valid(header) => format!("{header} is valid"),
        Condition::Eq(a, b) => format!("{a} == {b}"),
        Condition::Ne(a, b) => format!("{a} != {b}"),
        Condition::Lt(a, b) => format!("{a} < {b}"),
        Condition::Le(a, b) => format!("{a} <= {b}"),
        Condition::Gt(a, b) => format!("{a} > {b}"),
        Condition::Ge(a, b) => format!("{a} >= {b}"),
        Condition::Masked(a, mask, value) => format!("{a} & {mask} == {value}"),
        Condition::All(conditions) => list(conditions, " and "),
        Condition::Any(conditions) => list(conditions, " or "),
        Condition::Not(condition) => format!("not {}", condition_text(condition)),
    }
}
