//! Text that a client chose, as it may be shown to people: on a terminal, in a log, in JSON.

use std::borrow::Cow;

/// The text without what would change how the rest of a line is shown: control characters, ends of
/// lines, marks of writing direction (Unicode's `Bidi_Control`), and characters without a width.
/// Each becomes U+FFFD.
pub fn harmless(text: &str) -> Cow<'_, str> {
    if text.contains(is_harmful) {
        text.replace(is_harmful, "\u{fffd}").into()
    } else {
        text.into()
    }
}

fn is_harmful(c: char) -> bool {
    let marks = matches!(c, '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{feff}');
    let lines = matches!(c, '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}');
    c.is_control() || marks || lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_turns_a_line_around_is_not_shown() {
        assert_eq!(harmless("anna@bücher.example"), "anna@bücher.example");
        let hostile = "a\u{202e}b\u{2066}c\u{61c}d\u{200f}e\u{1b}f\u{9b}g\nh\u{2028}i\u{feff}";
        let shown = harmless(hostile);
        assert_eq!(shown.replace('\u{fffd}', ""), "abcdefghi");
        assert_eq!(shown.matches('\u{fffd}').count(), 9);
    }
}
