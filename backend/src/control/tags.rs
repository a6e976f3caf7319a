//! Tags by which a client says what it has seen of what it changes, so that a change made meanwhile by another is not lost
//! (RFC 9110 §8.8.3, §13.1.1). Compared by whoever carries the change out, so that nothing comes between.
use serde::Serialize;
use sha2::{Digest, Sha256};

/// What a change asks of the thing it changes: nothing, or that its tag is one of some.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IfMatch(Option<Vec<String>>);

impl IfMatch {
    /// One of these; none of them: never.
    pub fn one_of(tags: Vec<String>) -> Self {
        Self(Some(tags))
    }

    /// Whether a thing with this tag is changed.
    pub fn holds(&self, tag: impl FnOnce() -> String) -> bool {
        self.0.as_ref().is_none_or(|tags| tags.contains(&tag()))
    }
}

/// The tag of what is told by all of its fields.
pub fn tag_of(thing: &impl Serialize) -> String {
    // What cannot be written has no fields that differ.
    tag_of_bytes(&serde_json::to_vec(thing).unwrap_or_default())
}

/// The same, of what is written already.
pub fn tag_of_bytes(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    let bytes = digest.iter().take(12);
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_holds_for_one_of_its_tags_and_without_any_for_everything() {
        let tag = || "a".to_owned();
        assert!(IfMatch::default().holds(tag));
        assert!(IfMatch::one_of(vec!["b".to_owned(), tag()]).holds(tag));
        assert!(!IfMatch::one_of(vec!["b".to_owned()]).holds(tag));
        assert!(!IfMatch::one_of(vec![]).holds(tag));
    }

    #[test]
    fn things_that_differ_have_different_tags() {
        assert_eq!(tag_of(&[1, 2]), tag_of(&[1, 2]));
        assert_ne!(tag_of(&[1, 2]), tag_of(&[1, 3]));
    }
}
