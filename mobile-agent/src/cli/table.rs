//! Text tables: columns two spaces apart, each as wide as its widest cell.

use mobile_host::text::printable;

/// Formats one line per row. Escapes control characters, so that a cell cannot break a line, and
/// does not pad the last column.
pub(super) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> =
        rows.iter().map(|row| row.each_ref().map(|cell| printable(cell).into_owned())).collect();
    let mut widths = header.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in std::iter::once(&header.map(str::to_owned)).chain(&rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["eth0".to_owned(), "yes".to_owned()], ["w".to_owned(), String::new()]];
        assert_eq!(table(["NAME", "UP"], &rows), "NAME  UP\neth0  yes\nw\n");
        let rows = [["a\n1 root\x1b[2J".to_owned(), "b".to_owned()]];
        assert_eq!(table(["A", "B"], &rows).lines().nth(1), Some("a\\n1 root\\u{1b}[2J  b"));
    }
}
