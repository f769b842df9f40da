//! Prints aligned columns for people; programs use `--json`.

/// Prints a heading and rows, with each column as wide as its widest cell.
pub(super) fn print_table(heading: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    print!("{}", format_table(heading, rows));
}

fn format_table(heading: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let heading = heading.iter().map(|&cell| cell.to_owned()).collect();
    let lines: Vec<Vec<String>> = std::iter::once(heading).chain(rows).collect();
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = lines.iter().filter_map(|line| line.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    lines
        .iter()
        .map(|line| {
            let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_no_line_ends_in_spaces() {
        let rows = [vec!["laptop".to_owned(), "10.0.0.2".to_owned()], vec!["a".to_owned(), String::new()]];
        let text = format_table(&["NAME", "ADDRESSES"], rows.into_iter());
        assert_eq!(text, "NAME    ADDRESSES\nlaptop  10.0.0.2\na\n");
    }
}
