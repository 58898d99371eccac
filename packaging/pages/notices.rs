//! The licences of what is in the program: each crate with the texts that it ships, and each text
//! once.

use super::crates::Crate;

/// Data that a crate has from somebody else, and says so elsewhere than in its licence.
pub(crate) const DATA: &str = "\
Public Suffix List, as data in the crate psl
    licence  MPL-2.0, https://mozilla.org/MPL/2.0/
    source   https://publicsuffix.org/list/public_suffix_list.dat
";

/// The file.
pub(crate) fn file(linked: &[Crate]) -> String {
    let mut texts: Vec<&str> = Vec::new();
    let mut list = String::new();
    for Crate { name, version, licence, repository, texts: own } in linked {
        let mut numbers = Vec::new();
        for (file, text) in own {
            let known = texts.iter().position(|known| *known == text.as_str());
            let number = known.unwrap_or_else(|| {
                texts.push(text);
                texts.len() - 1
            });
            numbers.push(format!("{file} [{}]", number + 1));
        }
        list += &format!("{name} {version}\n    licence  {licence}\n");
        if !repository.is_empty() {
            list += &format!("    source   {repository}\n");
        }
        if !numbers.is_empty() {
            list += &format!("    texts    {}\n", numbers.join(", "));
        }
        list.push('\n');
    }
    let texts = texts.iter().zip(1..).map(|(text, number)| {
        let rule = "-".repeat(78);
        format!("\n{rule}\n[{number}]\n\n{text}")
    });
    format!(
        "Third-party notices\n\n\
         postpone is under GPL-3.0-or-later. The program has the following in it, each under its \
         own licence.\nThe numbers are those of the texts below.\n\n{list}{DATA}{}",
        texts.collect::<String>()
    )
}
