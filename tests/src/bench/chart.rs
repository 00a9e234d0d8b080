//! The rows as a picture: how many times better than asked, on a logarithmic scale, as SVG by hand.
//!
//! Called by the program with the rows of the table.

use std::fmt::Write as _;

use super::figures::{Row, Target};
use super::statistics::median;

const LABELS: f64 = 190.0;
const WIDTH: f64 = 460.0;
const TEXTS: f64 = 270.0;
const LINE: f64 = 22.0;
const TOP: f64 = 54.0;
/// The scale ends at a margin of this power of two, both ways.
const DOUBLINGS: f64 = 4.0;

/// The picture.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "some dozens of rows")]
pub fn svg(rows: &[Row]) -> String {
    let height = TOP + LINE * rows.len() as f64 + 16.0;
    let width = LABELS + WIDTH + TEXTS;
    let middle = LABELS + WIDTH / 2.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"15\">Holdfast's broker: each figure against its target (right of the line: better than asked)</text>\n"
    );
    for doubling in -4..=4 {
        let x = middle + f64::from(doubling) * WIDTH / 2.0 / DOUBLINGS;
        let stroke = if doubling == 0 { "#222" } else { "#ddd" };
        let label = if doubling >= 0 {
            format!("{}x", 1 << doubling)
        } else {
            format!("1/{}", 1 << -doubling)
        };
        // Writing to a string does not fail.
        let _ = writeln!(
            out,
            "<line x1=\"{x}\" y1=\"{}\" x2=\"{x}\" y2=\"{}\" stroke=\"{stroke}\"/>\
             <text x=\"{x}\" y=\"{}\" text-anchor=\"middle\" fill=\"#666\">{label}</text>",
            TOP - 4.0,
            height - 12.0,
            TOP - 10.0
        );
    }
    for (index, row) in rows.iter().enumerate() {
        bar(&mut out, row, TOP + LINE * index as f64, middle);
    }
    out + "</svg>\n"
}

fn bar(out: &mut String, row: &Row, y: f64, middle: f64) {
    let margin = row.margin();
    let doublings = if margin.is_finite() && margin > 0.0 {
        margin.log2().clamp(-DOUBLINGS, DOUBLINGS)
    } else {
        -DOUBLINGS
    };
    let length = doublings.abs() * WIDTH / 2.0 / DOUBLINGS;
    let start = if doublings < 0.0 {
        middle - length
    } else {
        middle
    };
    let colour = if row.held() { "#2e7d5b" } else { "#c0392b" };
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
         <rect x=\"{start:.1}\" y=\"{}\" width=\"{length:.1}\" height=\"{}\" fill=\"{colour}\"/>\
         <text x=\"{}\" y=\"{}\" fill=\"#333\">{}</text>",
        LABELS - 8.0,
        y + 15.0,
        row.name,
        y + 4.0,
        LINE - 8.0,
        LABELS + WIDTH + 8.0,
        y + 15.0,
        said(row)
    );
}

fn said(row: &Row) -> String {
    match row.target {
        Target::RatioAtLeast(least) => {
            format!("{:.2} of theirs, asked at least {least}", row.ratio())
        }
        Target::RatioAtMost(most) => format!("{:.2} of theirs, asked at most {most}", row.ratio()),
        Target::AtMost(most) => format!("{:.1}, asked at most {most}", median(&row.ours)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_bar_in_the_colour_of_its_fate() {
        let mut good = Row::new("good", "", Target::RatioAtLeast(2.0));
        (good.ours, good.theirs) = (vec![8.0], vec![1.0]);
        let mut bad = Row::new("bad", "", Target::AtMost(50.0));
        bad.ours = vec![100.0];
        let text = svg(&[good, bad, Row::new("none", "", Target::AtMost(1.0))]);
        assert_eq!(text.matches("#2e7d5b").count(), 1);
        assert_eq!(text.matches("#c0392b").count(), 2);
        assert!(text.starts_with("<svg") && text.ends_with("</svg>\n"));
        // 4 times better than asked: two of four doublings to the right.
        assert!(
            text.contains("x=\"420.0\" y=\"58\" width=\"115.0\""),
            "{text}"
        );
    }
}
