//! How large a program may be. Each bound keeps what runs it, or what checks it, from work without end.

/// The JSON form, in bytes.
pub const JSON_BYTES: usize = 4 << 20;
/// Faults that are listed.
pub const ERRORS: usize = 1_000;
/// Faults for which the nearest name is looked for.
pub const SUGGESTIONS: usize = 100;
/// Header types of a program's own.
pub const HEADER_TYPES: usize = 128;
/// Headers of a program's own.
pub const HEADERS: usize = 128;
/// Fields of a header.
pub const HEADER_FIELDS: usize = 64;
/// Bytes of a header.
pub const HEADER_BYTES: usize = 255;
/// Fields of metadata.
pub const METADATA: usize = 256;
/// Bits of a field.
pub const FIELD_BITS: u16 = 128;
/// States of the parser, of a program's own.
pub const STATES: usize = 128;
/// States that the parser visits for one frame. Not a limit of the program: a frame that would need more has `too deep`.
pub const STATES_VISITED: usize = 24;
/// Fields a state selects on.
pub const SELECTED_FIELDS: usize = 8;
/// Cases of a state.
pub const CASES: usize = 256;
/// Extensions of states.
pub const EXTENSIONS: usize = 128;
/// Conditions that a state verifies.
pub const VERIFIED: usize = 16;
/// Arrays of meters, and of counters.
pub const ARRAYS: usize = 256;
/// Items of an array.
pub const ARRAY_ITEMS: u32 = 1 << 20;
/// Selectors.
pub const SELECTORS: usize = 64;
/// Groups of a selector.
pub const GROUPS: u32 = 1 << 16;
/// Members of a group.
pub const GROUP_MEMBERS: u32 = 4_096;
/// Fields of a member.
pub const MEMBER_FIELDS: usize = 16;
/// Fields that `select` hashes.
pub const HASHED_FIELDS: usize = 16;
/// Learning tables.
pub const LEARNING: usize = 16;
/// Actions.
pub const ACTIONS: usize = 1_024;
/// Parameters of an action.
pub const PARAMS: usize = 32;
/// Primitives of an action, or of a `do`.
pub const PRIMITIVES: usize = 64;
/// Tables.
pub const TABLES: usize = 256;
/// Entries of a table.
pub const TABLE_ENTRIES: u32 = 1 << 22;
/// Actions of a table.
pub const TABLE_ACTIONS: usize = 128;
/// Fields of a key.
pub const KEY_FIELDS: usize = 12;
/// Bits of a key.
pub const KEY_BITS: u32 = 1_024;
/// Constant entries of a table.
pub const CONST_ENTRIES: usize = 4_096;
/// Statements, in both controls together.
pub const STATEMENTS: usize = 4_096;
/// Statements inside each other.
pub const STATEMENT_DEPTH: usize = 32;
/// Conditions and their parts, in the whole program.
pub const CONDITIONS: usize = 8_192;
/// Conditions inside each other.
pub const CONDITION_DEPTH: usize = 16;
/// Headers that `encapsulate` puts before a frame.
pub const NEW_HEADERS: usize = 8;
/// Numbers that `controller` and `commit` take.
pub const NUMBERS: usize = 4;
/// Letters of a description.
pub const DESCRIPTION_BYTES: usize = 4_096;
