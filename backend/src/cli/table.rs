//! Aligned tables of text.

/// How a column is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows under headings. Each cell is on one line; control characters, which a terminal would obey, are shown as `?`.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(columns: &[(&str, Align)]) -> Self {
        Self {
            columns: columns
                .iter()
                .map(|(heading, align)| ((*heading).to_owned(), *align))
                .collect(),
            rows: vec![],
        }
    }

    /// Adds a row; cells beyond the headings are not shown.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows
            .push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    /// The text, a newline after each row.
    pub fn render(&self) -> String {
        let headings: Vec<String> = self
            .columns
            .iter()
            .map(|(heading, _)| heading.clone())
            .collect();
        let lines = || std::iter::once(&headings).chain(&self.rows);
        let mut widths = vec![0; headings.len()];
        for line in lines() {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = cell.chars().count().max(*width);
            }
        }
        let mut text = String::new();
        for line in lines() {
            let columns = self.columns.iter().zip(&widths);
            let cells = columns
                .zip(line)
                .map(|(((_, align), &width), cell)| match align {
                    Align::Left => format!("{cell:<width$}"),
                    Align::Right => format!("{cell:>width$}"),
                });
            text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// Without characters that a terminal would obey.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|char| if char.is_control() { '?' } else { char })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&[
            ("NAME", Align::Left),
            ("FRAMES", Align::Right),
            ("STATE", Align::Left),
        ]);
        table.row(["vm1".into(), "7".into(), "up".into()]);
        table.row(["host-0".into(), "1234567".into(), "".into()]);
        assert_eq!(
            table.render(),
            "NAME     FRAMES  STATE\nvm1           7  up\nhost-0  1234567\n"
        );
    }

    #[test]
    fn a_cell_cannot_steer_the_terminal() {
        let mut table = Table::new(&[("A", Align::Left)]);
        table.row(["\u{1b}[2J\nx".into()]);
        assert_eq!(table.render(), "A\n?[2J?x\n");
    }
}
