//! Rules that are gone from the configuration: what waits in the journal for them.
//!
//! Called by [`crate::app`] at the start and by [`crate::admin`]. A rule that was removed takes no
//! new message, or it would fill the journal for nobody. What waited for it is kept, since it may
//! only have been renamed, until the operator puts the rule back or says `bridge forget`.

use holdfast_broker::{Broker, ConsumerError, ConsumerOptions};

use super::RULE;
use crate::config::{Direction, Rule};

/// One rule that is gone.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Leftover {
    /// Its name.
    pub rule: String,
    /// Messages that wait for it.
    pub waiting: u64,
}

/// Stops the consumers of rules that are gone, and removes those for which nothing waits.
///
/// # Errors
/// The journal failed.
pub async fn keep(broker: &Broker, rules: &[Rule]) -> Result<(), ConsumerError> {
    for Leftover { rule, waiting } in find(broker, rules).await? {
        if waiting == 0 {
            broker.remove_consumer(&format!("{RULE}{rule}")).await?;
            continue;
        }
        tracing::warn!(
            rule,
            waiting,
            "this [[bridge]] rule is gone from the configuration, and messages wait for it: put it \
             back, or drop them by holdfast-gateway bridge forget {rule}"
        );
    }
    Ok(())
}

/// The rules that are gone; from now on they take nothing new.
///
/// # Errors
/// The journal failed.
pub async fn find(broker: &Broker, rules: &[Rule]) -> Result<Vec<Leftover>, ConsumerError> {
    let mut all = Vec::new();
    for name in broker.consumers() {
        let Some(rule) = name.strip_prefix(RULE) else {
            continue;
        };
        let is_out = |one: &Rule| one.name == rule && one.direction == Direction::Out;
        if rules.iter().any(is_out) {
            continue;
        }
        let options = ConsumerOptions {
            max_rows: u64::MAX,
            max_bytes: u64::MAX,
            ..ConsumerOptions::default()
        };
        let consumer = broker.consumer(&name, Vec::new(), options).await?;
        all.push(Leftover {
            rule: rule.to_owned(),
            waiting: consumer.waiting(),
        });
    }
    all.sort_by(|one, other| one.rule.cmp(&other.rule));
    Ok(all)
}

/// Drops what waits for a rule that is gone; `None` if there is no such rule.
///
/// # Errors
/// The journal failed.
pub async fn forget(
    broker: &Broker,
    rules: &[Rule],
    rule: &str,
) -> Result<Option<u64>, ConsumerError> {
    let found = find(broker, rules).await?;
    let Some(found) = found.into_iter().find(|one| one.rule == rule) else {
        return Ok(None);
    };
    broker.remove_consumer(&format!("{RULE}{rule}")).await?;
    tracing::warn!(
        rule,
        dropped = found.waiting,
        "what waited for a removed rule was dropped"
    );
    Ok(Some(found.waiting))
}
