//! The tokens of a Rust file: names, literals and punctuation, without comments.
//!
//! A small lexer instead of a parser: counting functions and imports needs names, brackets and
//! line numbers only.

/// A token and the line it starts on, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub kind: TokenKind,
    pub line: usize,
}

/// What the counts distinguish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenKind {
    /// An identifier or keyword.
    Name(String),
    /// The content of a string literal.
    Text(String),
    /// A number, character or lifetime, whose value does not matter here.
    Other,
    /// `::`
    PathSeparator,
    /// Any other character.
    Symbol(char),
}

impl Token {
    /// The name, if the token is one.
    pub fn name(&self) -> Option<&str> {
        match &self.kind {
            TokenKind::Name(name) => Some(name),
            _ => None,
        }
    }

    /// Whether the token is this character.
    pub fn is(&self, symbol: char) -> bool {
        self.kind == TokenKind::Symbol(symbol)
    }
}

/// All tokens of `source`.
pub fn tokens(source: &str) -> Vec<Token> {
    let mut lexer = Lexer {
        characters: source.chars().collect(),
        at: 0,
        line: 1,
    };
    let mut tokens = Vec::new();
    loop {
        lexer.skip_space_and_comments();
        let line = lexer.line;
        let Some(kind) = lexer.token() else {
            return tokens;
        };
        tokens.push(Token { kind, line });
    }
}

struct Lexer {
    characters: Vec<char>,
    at: usize,
    line: usize,
}

impl Lexer {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.characters.get(self.at + ahead).copied()
    }

    fn next(&mut self) -> Option<char> {
        let character = self.peek(0)?;
        self.at += 1;
        self.line += usize::from(character == '\n');
        Some(character)
    }

    fn skip_space_and_comments(&mut self) {
        while let Some(character) = self.peek(0) {
            match (character, self.peek(1)) {
                ('/', Some('/')) => {
                    while self.peek(0).is_some_and(|c| c != '\n') {
                        self.next();
                    }
                }
                ('/', Some('*')) => self.skip_block_comment(),
                (c, _) if c.is_whitespace() => {
                    self.next();
                }
                _ => return,
            }
        }
    }

    /// Block comments nest.
    fn skip_block_comment(&mut self) {
        let mut depth = 0;
        while let Some(character) = self.next() {
            match (character, self.peek(0)) {
                ('/', Some('*')) => depth += 1,
                ('*', Some('/')) => depth -= 1,
                _ => continue,
            }
            self.next();
            if depth == 0 {
                return;
            }
        }
    }

    fn token(&mut self) -> Option<TokenKind> {
        let character = self.peek(0)?;
        if character.is_alphabetic() || character == '_' {
            return Some(self.name_or_prefixed_literal());
        }
        if character.is_ascii_digit() {
            self.number();
            return Some(TokenKind::Other);
        }
        self.next();
        Some(match character {
            '"' => TokenKind::Text(self.text()),
            '\'' => {
                self.character_or_lifetime();
                TokenKind::Other
            }
            ':' if self.peek(0) == Some(':') => {
                self.next();
                TokenKind::PathSeparator
            }
            other => TokenKind::Symbol(other),
        })
    }

    fn name_or_prefixed_literal(&mut self) -> TokenKind {
        let mut name = String::new();
        while let Some(character) = self.peek(0).filter(|c| c.is_alphanumeric() || *c == '_') {
            name.push(character);
            self.next();
        }
        match (name.as_str(), self.peek(0)) {
            ("b" | "c", Some('"')) => {
                self.next();
                TokenKind::Text(self.text())
            }
            ("b", Some('\'')) => {
                self.next();
                self.character_or_lifetime();
                TokenKind::Other
            }
            ("r" | "br" | "cr", Some('"' | '#')) => self.raw(),
            _ => TokenKind::Name(name),
        }
    }

    /// After `r`: a raw string, or a raw identifier.
    fn raw(&mut self) -> TokenKind {
        let mut hashes = 0;
        while self.peek(0) == Some('#') {
            hashes += 1;
            self.next();
        }
        if self.peek(0) != Some('"') {
            return self.name_or_prefixed_literal();
        }
        self.next();
        let mut text = String::new();
        while let Some(character) = self.next() {
            let closes = character == '"' && (0..hashes).all(|i| self.peek(i) == Some('#'));
            if closes {
                (0..hashes).for_each(|_| {
                    self.next();
                });
                break;
            }
            text.push(character);
        }
        TokenKind::Text(text)
    }

    /// After the opening quote, up to and with the closing one.
    fn text(&mut self) -> String {
        let mut text = String::new();
        while let Some(character) = self.next() {
            match character {
                '"' => break,
                '\\' => text.extend(self.next()),
                other => text.push(other),
            }
        }
        text
    }

    /// After `'`: `a'`, `\n'`, `\u{..}'` or a lifetime.
    fn character_or_lifetime(&mut self) {
        if self.peek(0) == Some('\\') {
            self.next();
            self.next();
            while self.peek(0).is_some_and(|c| c != '\'') {
                self.next();
            }
            self.next();
        } else if self.peek(1) == Some('\'') {
            self.next();
            self.next();
        } else {
            while self
                .peek(0)
                .is_some_and(|c| c.is_alphanumeric() || c == '_')
            {
                self.next();
            }
        }
    }

    fn number(&mut self) {
        while let Some(character) = self.peek(0) {
            let fraction = character == '.' && self.peek(1).is_some_and(|c| c.is_ascii_digit());
            if !(character.is_alphanumeric() || character == '_' || fraction) {
                return;
            }
            self.next();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_hold_no_names() {
        let source =
            "/* a /* b */ c */ fn f<'a>(x: &'a str) { let y = '}'; r#\"fn g\"#; } // h\n1..2";
        let tokens = tokens(source);
        let names: Vec<&str> = tokens.iter().filter_map(Token::name).collect();
        assert_eq!(names, ["fn", "f", "x", "str", "let", "y"]);
        assert_eq!(tokens.iter().filter(|token| token.is('}')).count(), 1);
        assert_eq!(tokens.last().map(|token| token.line), Some(2));
    }
}
