//! Rust as text, as far as `tests/layers.rs` needs it: words without comments, literals and tests,
//! and the modules that paths among them lead to.

/// Where a file stands in the tree of modules.
pub(crate) struct Module(Vec<String>);

impl Module {
    /// By the file's path below `src`.
    pub(crate) fn of(path: &str) -> Self {
        let path = path.strip_suffix(".rs").unwrap_or(path);
        let path = path.strip_suffix("/mod").unwrap_or(path);
        Self(path.split('/').map(Into::into).collect())
    }

    /// The top-level module it belongs to.
    pub(crate) fn name(&self) -> &str {
        &self.0[0]
    }

    /// The top-level modules that its paths name: `crate::a`, `crate::{a, b}`, `super::a` where
    /// that is the crate, and `postpone::a` in the binary.
    pub(crate) fn uses(&self, tokens: &[String]) -> Vec<String> {
        let crate_name = if self.name() == "main" { "postpone" } else { "crate" };
        let is = |at: usize, word: &str| tokens.get(at).is_some_and(|token| token == word);
        let mut found = Vec::new();
        // Inline modules around the present token: the depth of braces at which each began.
        let (mut braces, mut inline) = (0_usize, Vec::new());
        let mut at = 0;
        while at < tokens.len() {
            match tokens[at].as_str() {
                "{" => {
                    if at >= 2 && is(at - 2, "mod") {
                        inline.push(braces);
                    }
                    braces += 1;
                }
                "}" => {
                    braces = braces.saturating_sub(1);
                    if inline.last() == Some(&braces) {
                        inline.pop();
                    }
                }
                word if word == crate_name && is(at + 1, "::") => {
                    found.extend(first_segments(&tokens[at + 2..]));
                }
                "super" => {
                    let mut up = 0;
                    while is(at, "super") && is(at + 1, "::") {
                        (up, at) = (up + 1, at + 2);
                    }
                    if up >= self.0.len() + inline.len() {
                        found.extend(first_segments(&tokens[at..]));
                    }
                    // Without `::` it is a visibility and stands alone.
                    at = if up == 0 { at + 1 } else { at };
                    continue;
                }
                _ => {}
            }
            at += 1;
        }
        found
    }
}

/// What a path begins with; all of them where it is a group.
fn first_segments(tokens: &[String]) -> Vec<String> {
    if tokens.first().is_none_or(|token| token != "{") {
        return tokens.first().cloned().into_iter().collect();
    }
    let (mut found, mut depth) = (Vec::new(), 0);
    for (at, token) in tokens.iter().enumerate() {
        match token.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," => {}
            word if depth == 1 && matches!(tokens[at - 1].as_str(), "{" | ",") => {
                found.push(word.to_owned());
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    found
}

/// The words of a source text; whatever is no word stands alone, but for `::`.
pub(crate) fn tokens(text: &str) -> Vec<String> {
    let mut rest = text;
    let mut tokens = Vec::new();
    while let Some(c) = rest.chars().next() {
        let length = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => string(rest),
            '\'' => quote(rest),
            'r' | 'b' | 'c' if raw_string(rest) > 0 => raw_string(rest),
            ':' if rest.starts_with("::") => token(&mut tokens, &rest[..2]),
            c if c.is_alphanumeric() || c == '_' => {
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
                token(&mut tokens, &rest[..end.unwrap_or(rest.len())])
            }
            c if c.is_whitespace() => c.len_utf8(),
            c => token(&mut tokens, &rest[..c.len_utf8()]),
        };
        rest = &rest[length..];
    }
    without_tests(tokens)
}

fn token(tokens: &mut Vec<String>, text: &str) -> usize {
    tokens.push(text.into());
    text.len()
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        match () {
            () if rest.starts_with(b"/*") => (depth, at) = (depth + 1, at + 2),
            () if rest.starts_with(b"*/") => (depth, at) = (depth - 1, at + 2),
            () => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of `"…"`.
fn string(text: &str) -> usize {
    let mut escaped = false;
    let end = text[1..].find(|c: char| {
        let ends = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |end| end + 2)
}

/// The length of `r"…"`, `br#"…"#` and their like; zero if it is none.
fn raw_string(text: &str) -> usize {
    let Some(inside) = ["r", "br", "cr"].iter().find_map(|prefix| text.strip_prefix(prefix)) else {
        return 0;
    };
    let hashes = inside.len() - inside.trim_start_matches('#').len();
    let Some(body) = inside[hashes..].strip_prefix('"') else { return 0 };
    let closing = format!("\"{}", "#".repeat(hashes));
    let end = body.find(&closing).map_or(body.len(), |end| end + closing.len());
    text.len() - body.len() + end
}

/// The length of `'c'`, or of the quote alone where a lifetime begins.
fn quote(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((at, c))) => {
            let behind = at + c.len_utf8();
            text[behind..].find('\'').map_or(1, |end| behind + end + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 1,
    }
}

/// Drops every item under `#[cfg(test)]`.
fn without_tests(tokens: Vec<String>) -> Vec<String> {
    const TEST: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::with_capacity(tokens.len());
    let mut rest = tokens.as_slice();
    while let Some((first, behind)) = rest.split_first() {
        if rest.len() >= TEST.len() && rest.iter().zip(TEST).all(|(token, test)| token == test) {
            rest = &rest[TEST.len()..];
            rest = &rest[item(rest)..];
        } else {
            kept.push(first.clone());
            rest = behind;
        }
    }
    kept
}

/// How many tokens an item has: up to its `;`, or to the end of its braces if it has a body.
fn item(tokens: &[String]) -> usize {
    let import = tokens.first().is_some_and(|token| token == "use");
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate() {
        match token.as_str() {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => depth = depth.saturating_sub(1),
            _ => {}
        }
        let ends = token == ";" || (token == "}" && !import);
        if depth == 0 && ends {
            return at + 1;
        }
    }
    tokens.len()
}
