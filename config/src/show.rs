//! How answers look on a terminal: aligned tables and facts. Every text of a peer is escaped.
//!
//! Called by the command lines of the daemons. Of what a field means it knows only what its name
//! says: [`MOMENTS`] and `..._ends` are moments (unix seconds, 0 for never), `..._secs` is a span, `..._secs_ago` one
//! that is over, and an object with `at` and `quality` is a moment on record.

use std::time::{Duration, SystemTime};

use serde_json::Value;

/// Spans longer than this are told in whole days.
const IN_DAYS: u64 = 2 * DAY;
const DAY: u64 = 86_400;
/// Fields whose numbers are moments.
const MOMENTS: [&str; 9] = [
    "changed",
    "expires",
    "heard",
    "last",
    "not_after",
    "not_before",
    "since",
    "time",
    "until",
];

/// Rows as a table with these columns, each a key of the rows' objects.
#[must_use]
pub fn table(rows: &Value, columns: &[&str]) -> String {
    let rows: Vec<Vec<String>> = rows
        .as_array()
        .into_iter()
        .flatten()
        .map(|row| columns.iter().map(|name| cell(name, &row[*name])).collect())
        .collect();
    if rows.is_empty() {
        return "none\n".to_owned();
    }
    let header: Vec<String> = columns
        .iter()
        .map(|name| words(name).to_uppercase())
        .collect();
    let width = |at: usize| {
        let cells = rows
            .iter()
            .chain([&header])
            .map(|row: &Vec<String>| row[at].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for row in [&header].into_iter().chain(&rows) {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// An object as one `name  value` a line; of a list of objects each has a line of its own.
#[must_use]
pub fn facts(value: &Value) -> String {
    let facts = value.as_object().into_iter().flatten();
    let facts: Vec<_> = facts
        .map(|(name, value)| (words(name), lines(name, value)))
        .collect();
    let widths = facts.iter().map(|(name, _)| name.chars().count());
    let width = widths.max().unwrap_or(0);
    let mut text = String::new();
    for (name, lines) in &facts {
        for (at, line) in lines.iter().enumerate() {
            let name = if at == 0 { name } else { "" };
            text.push_str(&format!("{name:width$}  {line}\n"));
        }
    }
    text
}

fn lines(name: &str, value: &Value) -> Vec<String> {
    match value.as_array() {
        Some(items) if items.first().is_some_and(Value::is_object) => {
            items.iter().map(|item| cell(name, item)).collect()
        }
        _ => vec![cell(name, value)],
    }
}

/// A field's name as a person reads it; what its ending says of the unit, the value says itself.
fn words(name: &str) -> String {
    let bare = name
        .strip_suffix("_secs")
        .or(name.strip_suffix("_secs_ago"));
    bare.unwrap_or(name).replace('_', " ")
}

/// A number as its field's name says.
fn number(name: &str, count: u64) -> String {
    if name.ends_with("_secs_ago") {
        return span(count) + " ago";
    }
    if name.ends_with("_secs") {
        return span(count);
    }
    match MOMENTS.contains(&name) || name.ends_with("_ends") {
        true if count == 0 => "-".to_owned(),
        true => moment(count),
        false => count.to_string(),
    }
}

fn moment(secs: u64) -> String {
    let moment = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(secs));
    // Beyond year 9999 there is no such text.
    let text = moment
        .filter(|_| secs < 253_402_300_800)
        .map(humantime::format_rfc3339_seconds);
    text.map_or_else(|| secs.to_string(), |text| text.to_string())
}

/// A moment on record, and in brackets what is not certain of it.
fn told(fields: &serde_json::Map<String, Value>) -> String {
    let time = |name: &str| fields.get(name).and_then(Value::as_u64).map(moment);
    let at = time("at").unwrap_or_else(|| "-".to_owned());
    let quality = fields["quality"].as_str().unwrap_or_default();
    match (time("not_before"), time("not_after")) {
        _ if quality == "authenticated" => at,
        (None, None) => format!("{at} ({quality})"),
        (Some(from), None) => format!("{at} ({quality}; after {from})"),
        (None, Some(to)) => format!("{at} ({quality}; before {to})"),
        (Some(from), Some(to)) => format!("{at} ({quality}; between {from} and {to})"),
    }
}

fn span(secs: u64) -> String {
    if secs >= IN_DAYS {
        return format!("{} days", secs / DAY);
    }
    humantime::format_duration(Duration::from_secs(secs)).to_string()
}

/// One value as a person reads it. Control characters of a peer must not reach the terminal.
fn cell(name: &str, value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Number(count) => count
            .as_u64()
            .map_or_else(|| count.to_string(), |count| number(name, count)),
        Value::String(text) => text.clone(),
        Value::Object(fields) if fields.contains_key("at") && fields.contains_key("quality") => {
            told(fields)
        }
        Value::Object(fields) => {
            let said = fields.iter().filter(|(_, value)| !is_nothing(value));
            let said = said.map(|(name, value)| format!("{} {}", words(name), cell(name, value)));
            said.collect::<Vec<_>>().join(", ")
        }
        Value::Array(items) => {
            let items = items.iter().map(|item| cell(name, item));
            items.collect::<Vec<_>>().join(", ")
        }
    };
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            shown.extend(c.escape_debug())
        } else {
            shown.push(c)
        }
    }
    match shown.is_empty() {
        true => "-".to_owned(),
        false => shown,
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tables_align_and_escape() {
        let rows = json!([{ "a": "x\u{1b}[2J", "b": 1 }, { "a": "long one", "b": null }]);
        let text = table(&rows, &["a", "b"]);
        assert_eq!(text, "A           B\nx\\u{1b}[2J  1\nlong one    -\n");
        assert_eq!(table(&json!([]), &["a"]), "none\n");
    }

    #[test]
    fn facts_name_their_fields() {
        let value = json!({
            "mqtt_connections": 2, "listening": { "fdo": "x", "manufacturing": null }, "rules_gone": [],
            "remotes": [{ "name": "a", "connected": true }, { "name": "b", "connected": false, "denied": "" }],
        });
        let expected = "mqtt connections  2\n\
                        listening         fdo x\n\
                        rules gone        -\n\
                        remotes           name a, connected yes\n                  name b, connected no\n";
        assert_eq!(facts(&value), expected);
    }

    #[test]
    fn moments_and_spans_are_told_as_a_person_reads_them() {
        let value = json!({
            "since": 1_795_314_230u64, "site_certificate_ends": u64::MAX,
            "offline_window_left_secs": 94_607_910u64, "uptime_secs": 67, "since_text": "x",
        });
        let expected = "since                  2026-11-22T02:23:50Z\n\
                        site certificate ends  18446744073709551615\n\
                        offline window left    1094 days\n\
                        uptime                 1m 7s\n\
                        since text             x\n";
        assert_eq!(facts(&value), expected);
    }

    #[test]
    fn cells_are_told_as_their_column_says() {
        let rows = json!([
            { "not_before": 1_795_314_230u64, "heard_secs_ago": 5, "since": 0, "why": "", "of": [] },
            { "not_before": null, "heard_secs_ago": null, "since": 67, "why": "x", "of": ["a", "b"] },
        ]);
        let text = table(
            &rows,
            &["not_before", "heard_secs_ago", "since", "why", "of"],
        );
        let expected = "NOT BEFORE            HEARD   SINCE                 WHY  OF\n\
                        2026-11-22T02:23:50Z  5s ago  -                     -    -\n\
                        -                     -       1970-01-01T00:01:07Z  x    a, b\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_moment_on_record_says_how_far_it_is_known() {
        let row = |when: Value| table(&json!([{ "when": when }]), &["when"]);
        let sure = row(json!({ "at": 1_795_314_230u64, "quality": "authenticated" }));
        assert_eq!(sure, "WHEN\n2026-11-22T02:23:50Z\n");
        let later = row(json!({ "at": 1_795_314_230u64, "quality": "learnt later" }));
        assert_eq!(later, "WHEN\n2026-11-22T02:23:50Z (learnt later)\n");
        let between = json!({
            "at": 0, "quality": "none", "not_before": 1_795_314_230u64,
            "not_after": 1_795_314_231u64,
        });
        let expected = "WHEN\n1970-01-01T00:00:00Z (none; between 2026-11-22T02:23:50Z and \
                        2026-11-22T02:23:51Z)\n";
        assert_eq!(row(between), expected);
    }
}
