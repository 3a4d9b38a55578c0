//! Whose metadata a database holds: each installation has a random id, and two never share by accident.
//!
//! Must not know where the id is stored.

use crate::control::RandomId;
use crate::provider::{ProviderError, ProviderResult};

/// What to do with the metadata that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ownership {
    /// It is new: this id is to be stored, unless another server stores its own first.
    Claim(RandomId),
    /// It belongs to this installation, or to the one that is joined.
    Ours(RandomId),
}

/// Compares the id that is stored in the metadata at `place` with that of this server and with the one
/// that it was told to join.
///
/// # Errors
/// `OtherInstallation` with the stored id; `Settings` when there is nothing to join.
pub(crate) fn ownership(
    place: &str,
    stored: Option<RandomId>,
    ours: RandomId,
    join: Option<RandomId>,
) -> ProviderResult<Ownership> {
    match (stored, join) {
        (None, None) => Ok(Ownership::Claim(ours)),
        (None, Some(join)) => {
            let reason = format!(
                "{place} belongs to no installation yet, so installation {join} cannot be joined there; \
                 start its first server without joining, or check the database and the names"
            );
            Err(ProviderError::Settings { reason })
        }
        (Some(stored), Some(join)) if stored == join => Ok(Ownership::Ours(stored)),
        (Some(stored), None) if stored == ours => Ok(Ownership::Ours(stored)),
        (Some(stored), _) => Err(ProviderError::OtherInstallation {
            place: place.to_owned(),
            installation: stored,
        }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn id(digit: char) -> RandomId {
        RandomId::try_from(digit.to_string().repeat(32)).unwrap()
    }

    #[test]
    fn only_one_s_own_or_a_named_installation_is_used() {
        let (a, b, c) = (id('a'), id('b'), id('c'));
        let look = |stored, join| ownership("schema m", stored, a, join);
        assert_eq!(look(None, None).unwrap(), Ownership::Claim(a));
        assert_eq!(look(Some(a), None).unwrap(), Ownership::Ours(a));
        assert_eq!(look(Some(b), Some(b)).unwrap(), Ownership::Ours(b));
        for join in [None, Some(c), Some(a)] {
            let error = look(Some(b), join).unwrap_err();
            let text = error.to_string();
            assert!(
                matches!(error, ProviderError::OtherInstallation { installation, .. } if installation == b)
            );
            assert!(
                text.contains(&b.to_string()) && text.contains("--join-installation"),
                "{text}"
            );
        }
        let error = look(None, Some(b)).unwrap_err().to_string();
        assert!(error.contains("no installation yet"), "{error}");
    }
}
