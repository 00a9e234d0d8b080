//! How answers look on a terminal: aligned tables and facts. Every text of a peer is escaped.
//!
//! Called by the command lines of the daemons. Of what a field means it knows only what its name
//! says: `since`, `time` and `..._ends` are moments (unix seconds), `..._secs` is a span, and an object with
//! `at` and `quality` is a moment on record.

use std::time::{Duration, SystemTime};

use serde_json::Value;

/// Spans longer than this are told in whole days.
const IN_DAYS: u64 = 2 * DAY;
const DAY: u64 = 86_400;

/// Rows as a table with these columns, each a key of the rows' objects.
#[must_use]
pub fn table(rows: &Value, columns: &[&str]) -> String {
    let rows: Vec<Vec<String>> = rows
        .as_array()
        .into_iter()
        .flatten()
        .map(|row| columns.iter().map(|column| cell(&row[*column])).collect())
        .collect();
    if rows.is_empty() {
        return "none\n".to_owned();
    }
    let header: Vec<String> = columns.iter().map(|column| column.to_uppercase()).collect();
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

/// An object as one `name: value` a line.
#[must_use]
pub fn facts(value: &Value) -> String {
    let lines: Vec<_> = value.as_object().into_iter().flatten().map(fact).collect();
    let width = lines
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0);
    lines
        .iter()
        .map(|(name, value)| format!("{name:width$}  {value}\n"))
        .collect()
}

/// One field's name and value as a person reads them.
fn fact((name, value): (&String, &Value)) -> (String, String) {
    let words = |name: &str| name.replace('_', " ");
    let Some(secs) = value.as_u64() else {
        return (words(name), cell(value));
    };
    if let Some(name) = name.strip_suffix("_secs") {
        return (words(name), span(secs));
    }
    if name == "since" || name == "time" || name.ends_with("_ends") {
        return (words(name), moment(secs));
    }
    (words(name), cell(value))
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

/// Control characters of a peer must not reach the terminal.
fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Object(fields) if fields.contains_key("at") && fields.contains_key("quality") => {
            told(fields)
        }
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(name, value)| format!("{name} {}", cell(value)));
            fields.collect::<Vec<_>>().join(", ")
        }
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    };
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            shown.extend(c.escape_debug())
        } else {
            shown.push(c)
        }
    }
    shown
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
        let value = json!({ "mqtt_connections": 2, "listening": { "fdo": "x" } });
        assert_eq!(
            facts(&value),
            "mqtt connections  2\nlistening         fdo x\n"
        );
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
