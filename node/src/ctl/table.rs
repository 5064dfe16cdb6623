//! A plain table: columns as wide as they need to be, two spaces between.

/// Lines of `rows` under `header`; the columns whose index is in `right` are aligned to the right.
pub(super) fn render(header: &[&str], rows: &[Vec<String>], right: &[usize]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..header.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let mut text = String::new();
        for (column, cell) in cells.into_iter().enumerate() {
            let padding = " ".repeat(widths[column] - cell.chars().count());
            if column > 0 {
                text.push_str("  ");
            }
            if right.contains(&column) {
                text.push_str(&padding);
                text.push_str(cell);
            } else {
                text.push_str(cell);
                text.push_str(&padding);
            }
        }
        text.trim_end().to_owned() + "\n"
    };
    let mut text = line(header.to_vec());
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["pump-1".to_owned(), "7".to_owned()], vec!["ü".to_owned(), "1234".to_owned()]];
        assert_eq!(render(&["ID", "N"], &rows, &[1]), "ID         N\npump-1     7\nü       1234\n");
        assert_eq!(render(&["ID", "N"], &[], &[1]), "ID  N\n");
    }
}
