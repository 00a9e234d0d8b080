//! The measurements that the thermometer publishes: the Seattle weather table, one row a message.
//! Called by `world` (the agent's input) and `judge` (what must arrive); it knows nothing of MQTT.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde_json::Value;

/// The table as rows of text cells, in file order.
#[derive(Debug, Clone)]
pub struct Table {
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
    /// Where to look first, by the first cell.
    by_first: HashMap<String, usize>,
}

impl Table {
    /// Reads the table that the tree carries.
    ///
    /// # Errors
    /// The file is not there or not a plain table.
    pub fn of_the_tree() -> anyhow::Result<Self> {
        let file = file();
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        Self::parse(&text)
    }

    /// Parses plain comma-separated text with a header and no quoting.
    ///
    /// # Errors
    /// A row has another number of cells than the header.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let cells = |line: &str| {
            line.split(',')
                .map(|cell| cell.trim().to_owned())
                .collect::<Vec<_>>()
        };
        let mut lines = text.lines();
        let columns = cells(lines.next().context("the table is empty")?);
        let rows: Vec<_> = lines
            .filter(|line| !line.trim().is_empty())
            .map(cells)
            .collect();
        for (number, row) in rows.iter().enumerate() {
            ensure!(
                row.len() == columns.len(),
                "row {} has {} cells",
                number + 1,
                row.len()
            );
        }
        let firsts = rows.iter().enumerate();
        let by_first = firsts.map(|(at, row)| (row[0].clone(), at)).collect();
        Ok(Self {
            columns,
            rows,
            by_first,
        })
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True if there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Which row this payload is: every column there with the row's value, and nothing else. `None` if it is no row.
    #[must_use]
    pub fn row_of(&self, payload: &Value) -> Option<usize> {
        let object = payload.as_object()?;
        if object.len() != self.columns.len() {
            return None;
        }
        let fits = |row: &[String]| {
            let mut cells = self.columns.iter().zip(row);
            cells.all(|(column, cell)| object.get(column).is_some_and(|value| is_same(value, cell)))
        };
        let first = object.get(self.columns.first()?).and_then(Value::as_str);
        match first.and_then(|first| self.by_first.get(first)) {
            Some(at) if fits(&self.rows[*at]) => Some(*at),
            _ => self.rows.iter().position(|row| fits(row)),
        }
    }
}

/// The table's file in the tree.
#[must_use]
pub fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/weather/seattle-weather.csv")
}

/// A JSON value equals a cell as text, or as a number of the same value.
fn is_same(value: &Value, cell: &str) -> bool {
    match value {
        Value::String(text) => text == cell,
        Value::Number(number) => number.as_f64() == cell.parse().ok(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::Table;
    use serde_json::json;

    #[test]
    fn the_tree_has_the_whole_table() {
        let table = Table::of_the_tree().unwrap();
        assert_eq!(table.len(), 1461);
        let first = json!({"date": "2012/01/01", "precipitation": 0.0, "temp_max": 12.8, "temp_min": 5.0, "wind": 4.7, "weather": "drizzle"});
        assert_eq!(table.row_of(&first), Some(0));
    }

    #[test]
    fn control_a_changed_or_padded_row_is_no_row() {
        let table = Table::parse("a,b\n1.0,x\n2.0,y\n").unwrap();
        assert_eq!(table.row_of(&json!({"a": 2, "b": "y"})), Some(1));
        assert_eq!(table.row_of(&json!({"a": "2.0", "b": "y"})), Some(1));
        assert_eq!(table.row_of(&json!({"a": 2.5, "b": "y"})), None);
        assert_eq!(table.row_of(&json!({"a": 2, "b": "x"})), None);
        assert_eq!(table.row_of(&json!({"a": 2, "b": "y", "c": 1})), None);
        assert_eq!(table.row_of(&json!({"a": 2})), None);
    }
}
