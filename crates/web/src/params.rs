//! Parameters of a query string: each is known, and checked with the words of the command line.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use axum::extract::Query;
use axum::http::Uri;

use crate::problem::Problem;

/// The parameters of a query string, of known names.
#[derive(Debug)]
pub struct Params(Vec<(String, String)>);

impl Params {
    /// Reads the query string of a request, which may have these parameters.
    ///
    /// # Errors
    /// It is no query string, or has an unknown parameter.
    pub fn read(uri: &Uri, known: &[&str]) -> Result<Self, Problem> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|error| Problem::bad_request(format!("query string: {error}")))?;
        match pairs.iter().find(|(name, _)| !known.contains(&&**name)) {
            None => Ok(Self(pairs)),
            Some((name, _)) if known.is_empty() => Err(Problem::bad_request(format!(
                "query string: expected none, found `{name}`"
            ))),
            Some((name, _)) => Err(Problem::bad_request(format!(
                "query string: expected {}, found `{name}`",
                known.join(", ")
            ))),
        }
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let of_name = self.0.iter().filter(move |(of, _)| of == name);
        of_name.map(|(_, value)| value.as_str())
    }

    /// The value of a parameter.
    ///
    /// # Errors
    /// It is given twice.
    pub fn one<'a>(&'a self, name: &'a str) -> Result<Option<&'a str>, Problem> {
        let mut values = self.all(name);
        match (values.next(), values.next()) {
            (value, None) => Ok(value),
            _ => Err(Problem::bad_request(format!(
                "{name}: expected one value, found several"
            ))),
        }
    }

    /// The value of a parameter that has to be there.
    ///
    /// # Errors
    /// It is missing, or given twice.
    pub fn needed<'a>(&'a self, name: &'a str) -> Result<&'a str, Problem> {
        self.one(name)?
            .ok_or_else(|| Problem::bad_request(format!("{name}: expected a value, found none")))
    }

    /// The number of a parameter, or `otherwise`.
    ///
    /// # Errors
    /// It is no number of the range.
    pub fn number<T: FromStr + PartialOrd + Display + Copy>(
        &self,
        name: &str,
        range: RangeInclusive<T>,
        otherwise: T,
    ) -> Result<T, Problem> {
        let Some(text) = self.one(name)? else {
            return Ok(otherwise);
        };
        match text.parse() {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => Err(Problem::bad_request(format!(
                "{name}: expected a number from {} to {}, found `{text}`",
                range.start(),
                range.end()
            ))),
        }
    }

    /// The value of a parameter that is one of these, or the first of them.
    ///
    /// # Errors
    /// It is another.
    pub fn choice(&self, name: &str, of: &[&'static str]) -> Result<&'static str, Problem> {
        match self.one(name)? {
            None => Ok(of[0]),
            Some(text) => { of.iter() }
                .find(|one| **one == text)
                .copied()
                .ok_or_else(|| {
                    let expected = of.join(" or ");
                    Problem::bad_request(format!("{name}: expected {expected}, found `{text}`"))
                }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &'static str) -> Result<Params, Problem> {
        Params::read(&Uri::from_static(query), &["top", "filter", "on"])
    }

    #[test]
    fn parameters_are_known_and_in_range() {
        let params = read("/x?top=7&filter=a:b&filter=c%3Ad%20e").unwrap();
        assert_eq!(params.number("top", 1..=9, 1).unwrap(), 7);
        assert_eq!(params.all("filter").collect::<Vec<_>>(), ["a:b", "c:d e"]);
        assert_eq!(params.choice("on", &["no", "yes"]).unwrap(), "no");
        assert!(params.one("filter").is_err() && params.needed("on").is_err());
        for (query, words) in [
            (
                "/x?top=10",
                "top: expected a number from 1 to 9, found `10`",
            ),
            ("/x?top=NaN", "found `NaN`"),
            ("/x?to=1", "expected top, filter, on, found `to`"),
        ] {
            let found = read(query).and_then(|params| params.number("top", 1.0..=9.0, 1.0));
            let text = serde_json::to_string(&found.unwrap_err()).unwrap();
            assert!(text.contains(words), "{text}");
        }
    }
}
