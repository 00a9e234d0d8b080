//! `authority show`: which roots are believed, and who leans on which.

use holdfast_config::show;
use serde_json::{Value, json};

use crate::ask::{Ask, pretty};

/// How the roots, the intermediates and those who lean on them stand.
///
/// # Errors
/// What the operator must know.
pub async fn shown(ask: &Ask, json: bool) -> anyhow::Result<String> {
    let view = ask.get("/v1/authority").await?;
    if json {
        return Ok(pretty(&view));
    }
    let roots = ["sha256", "state", "not_before", "not_after"];
    let mut text = show::table(&view["roots"], &roots);
    text += &show::facts(&json!({ "intermediate": view["intermediate"] }));
    let lists = [
        (
            "gateways",
            &["gateway", "root", "intermediate", "since"][..],
        ),
        ("leaning", &["who", "why", "until"][..]),
    ];
    for (name, columns) in lists {
        let rows = &view[name];
        if rows.as_array().is_some_and(|rows| !rows.is_empty()) {
            text += &format!("\n{}:\n", title(name));
            text += &show::table(rows, columns);
        }
    }
    Ok(text)
}

fn title(name: &str) -> &str {
    match name {
        "leaning" => "lean on the earlier root, which cannot be retired before",
        other => other,
    }
}

/// One line on what was done.
#[must_use]
pub fn names(list: &Value) -> String {
    let names = list.as_array().into_iter().flatten();
    let names = names.map(|one| match one {
        Value::String(text) => text.clone(),
        other => other["who"].as_str().unwrap_or_default().to_owned(),
    });
    names.collect::<Vec<_>>().join(", ")
}
