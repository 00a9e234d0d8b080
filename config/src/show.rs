//! How answers look on a terminal: aligned tables and facts. Every text of a peer is escaped.
//!
//! Called by the command lines of the daemons. It knows column names and nothing of what they mean.

use serde_json::Value;

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
        let cells = rows.iter().chain([&header]).map(|row: &Vec<String>| row[at].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for row in [&header].into_iter().chain(&rows) {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// An object as one `name: value` a line.
#[must_use]
pub fn facts(value: &Value) -> String {
    let fields = value.as_object().into_iter().flatten();
    fields.map(|(name, value)| format!("{}: {}\n", name.replace('_', " "), cell(value))).collect()
}

/// Control characters of a peer must not reach the terminal.
fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| format!("{name} {}", cell(value)));
            fields.collect::<Vec<_>>().join(", ")
        }
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    };
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { shown.extend(c.escape_debug()) } else { shown.push(c) }
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
        assert_eq!(text, "A            B\nx\\u{1b}[2J  1\nlong one     -\n");
        assert_eq!(table(&json!([]), &["a"]), "none\n");
    }

    #[test]
    fn facts_name_their_fields() {
        let value = json!({ "mqtt_connections": 2, "listening": { "fdo": "x" } });
        assert_eq!(facts(&value), "listening: fdo x\nmqtt connections: 2\n");
    }
}
