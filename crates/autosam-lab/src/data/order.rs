//! SUN-SEG's frame order.

/// Sort key of a file name: the numbers before `-`, after `_a` and after `_image`, as in SUN-SEG's own tools. Names
/// without these parts sort after them, in natural order.
pub type Key = (Option<(u64, u64, u64)>, Vec<Part>);

/// A part of a name: digits compare by value, text by character.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Number(u64, String),
    Text(String),
}

pub fn key(name: &str) -> Key {
    let sun = sun(name);
    // `None` sorts before `Some`. Mixed folders do not occur, so this does not matter.
    (sun, natural(name))
}

/// The three numbers of `case_M_20181001100941_0U62372100109341_1_005_001-1_a13_image0001.jpg`.
fn sun(name: &str) -> Option<(u64, u64, u64)> {
    let (front, rest) = name.split_once('-')?;
    let number = |text: &str| -> Option<u64> {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    let before: String = front.chars().rev().take_while(char::is_ascii_digit).collect();
    let before: String = before.chars().rev().collect();
    let (_, after_a) = rest.split_once("_a")?;
    let (_, after_image) = rest.split_once("_image")?;
    Some((before.parse().ok()?, number(after_a)?, number(after_image)?))
}

fn natural(name: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let digits = first.is_ascii_digit();
        let end = rest.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(rest.len());
        let (head, tail) = rest.split_at(end);
        // Numbers too long for a u64 compare as text.
        parts.push(match head.parse::<u64>() {
            Ok(value) if digits => Part::Number(value, head.to_owned()),
            _ => Part::Text(head.to_owned()),
        });
        rest = tail;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(mut names: Vec<&str>) -> Vec<&str> {
        names.sort_by_cached_key(|n| key(n));
        names
    }

    #[test]
    fn sun_names_are_sorted_by_their_three_numbers() {
        let name = |a: u32, b: u32, c: u32| format!("case_M_2018_0U6_1_005_{a:03}-1_a{b}_image{c:04}.jpg");
        let names = [name(1, 13, 2), name(1, 2, 30), name(2, 1, 1), name(1, 13, 1)];
        let want = [&names[1], &names[3], &names[0], &names[2]];
        assert_eq!(sorted(names.iter().map(String::as_str).collect()), want);
    }

    #[test]
    fn other_names_are_sorted_naturally() {
        assert_eq!(
            sorted(vec!["frame10.png", "frame9.png", "1.jpg"]),
            ["1.jpg", "frame9.png", "frame10.png"]
        );
    }
}
