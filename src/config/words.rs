//! What serde says of a value, in the words of whoever writes settings.

/// The message of serde, put in other words; `text` is what stands at the place.
pub(super) fn in_words(message: &str, text: &str) -> String {
    let message = message.trim_end().replace('\n', "; ");
    unknown(&message, "unknown field `", "unknown key")
        .or_else(|| unknown(&message, "unknown variant `", "unknown word"))
        .or_else(|| missing(&message))
        .or_else(|| one_of(&message))
        .or_else(|| socket_address(&message))
        .or_else(|| network(&message, text))
        .or_else(|| wrong_type(&message, text))
        .unwrap_or(message)
}

/// `unknown field `x`, expected one of `a`, `b``, and the same of words.
fn unknown(message: &str, beginning: &str, what: &str) -> Option<String> {
    let (given, rest) = message.strip_prefix(beginning)?.split_once('`')?;
    let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
    if let Some(meant) = did_you_mean(given, known.iter().copied()) {
        return Some(format!("{what} `{given}`: {meant}"));
    }
    let expected = match known.as_slice() {
        [] => "nothing is expected here".to_owned(),
        [only] => format!("expected {only}"),
        [all @ .., last] => format!("expected {} or {last}", all.join(", ")),
    };
    Some(format!("{what} `{given}`, {expected}"))
}

/// `did you mean `x`?`, if one of them is near.
pub(super) fn did_you_mean<'a>(
    given: &str,
    known: impl Iterator<Item = &'a str>,
) -> Option<String> {
    let distance = |known: &str| strsim::damerau_levenshtein(&given.to_lowercase(), known);
    let begins = |known: &str| known.len() > 2 && given.to_lowercase().starts_with(known);
    let nearest = known.map(|known| (distance(known), known)).min();
    let near = |(distance, known): &(usize, &str)| {
        *distance <= 1 + given.chars().count() / 4 || begins(known)
    };
    nearest.filter(near).map(|(_, known)| format!("did you mean `{known}`?"))
}

fn missing(message: &str) -> Option<String> {
    let key = message.strip_prefix("missing field `")?.strip_suffix('`')?;
    Some(format!("expected the key `{key}`, which is missing"))
}

/// `expected one of a, b, or c; not "x"`, as our own words say it, where one of them is near.
fn one_of(message: &str) -> Option<String> {
    let (known, given) = message.strip_prefix("expected one of ")?.split_once("; not ")?;
    let given = given.trim_matches('"');
    let known = known.split(", ").map(|word| word.trim_start_matches("or "));
    did_you_mean(given, known).map(|meant| format!("unknown word `{given}`: {meant}"))
}

/// What the library says of one.
fn network(message: &str, text: &str) -> Option<String> {
    let is_one = ["invalid IP address syntax", "invalid IP prefix length"].contains(&message);
    is_one.then(|| format!("expected a network such as \"192.0.2.0/24\", not {text}"))
}

/// What the standard library says of one.
fn socket_address(message: &str) -> Option<String> {
    let rest = message.strip_prefix("invalid socket address syntax")?;
    Some(format!("expected an address and a port such as \"127.0.0.1:7423\"{rest}"))
}

/// `invalid type: string "x", expected a sequence`.
fn wrong_type(message: &str, text: &str) -> Option<String> {
    let rest = message
        .strip_prefix("invalid type: ")
        .or_else(|| message.strip_prefix("invalid value: "))
        .or_else(|| message.strip_prefix("invalid length "));
    let expected = match rest {
        Some(rest) => rest.rsplit_once(", expected ")?.1,
        None => message.strip_prefix("wanted ")?,
    };
    let expected = match expected {
        "a sequence" => "a list, such as [\"...\"]",
        "a map" => "a table, such as { key = ... }",
        "a boolean" => "true or false",
        "path string" => "a path in quotes",
        "a string" | "a borrowed string" | "string or table" => "a text in quotes",
        "u8" | "a nonzero u8" => "a whole number up to 255",
        "u16" | "u32" | "u64" | "usize" => "a whole number",
        "i64" => "a whole number, which may be negative",
        "a nonzero u16" | "a nonzero u32" | "a nonzero u64" => "a whole number from 1 on",
        "f32" | "f64" => "a number",
        structure if structure.starts_with("struct ") => "a table, such as { key = ... }",
        other => other,
    };
    let shown = text.lines().next().unwrap_or_default();
    let shown: String = shown.chars().take(60).collect();
    Some(match shown.is_empty() {
        true => format!("expected {expected}"),
        false => format!("expected {expected}, not {shown}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serde_is_put_in_other_words() {
        for (message, text, words) in [
            (
                "unknown field `hostnam`, expected one of `hostname`, `grace`",
                "hostnam",
                "unknown key `hostnam`: did you mean `hostname`?",
            ),
            (
                "unknown variant `enforced`, expected one of `enforce`, `shadow`, `off`\n",
                "\"enforced\"",
                "unknown word `enforced`: did you mean `enforce`?",
            ),
            ("unknown field `x`, expected `reply`", "x", "unknown key `x`, expected reply"),
            (
                "invalid type: string \"a\", expected a sequence",
                "\"a\"",
                "expected a list, such as [\"...\"], not \"a\"",
            ),
            (
                "invalid value: integer `300`, expected u8",
                "300",
                "expected a whole number up to 255, not 300",
            ),
            (
                "expected one of network, sender, or network/24; not \"netwrk\"",
                "\"netwrk\"",
                "unknown word `netwrk`: did you mean `network`?",
            ),
            (
                "expected one of network, sender, or network/24; not \"client\"",
                "\"client\"",
                "expected one of network, sender, or network/24; not \"client\"",
            ),
            (
                "unknown variant `warning`, expected one of `error`, `warn`, `info`",
                "\"warning\"",
                "unknown word `warning`: did you mean `warn`?",
            ),
            (
                "invalid socket address syntax (or \"none\")",
                "\"localhost:80\"",
                "expected an address and a port such as \"127.0.0.1:7423\" (or \"none\")",
            ),
            (
                "invalid IP address syntax",
                "\"@x\"",
                "expected a network such as \"192.0.2.0/24\", not \"@x\"",
            ),
            ("wanted string or table", "6", "expected a text in quotes, not 6"),
            (
                "invalid type: integer `3`, expected path string",
                "3",
                "expected a path in quotes, not 3",
            ),
            ("missing field `name`", "", "expected the key `name`, which is missing"),
            ("expected a time such as \"5m\"", "\"x\"", "expected a time such as \"5m\""),
        ] {
            assert_eq!(in_words(message, text), words);
        }
    }
}
