//! What a Rust file defines and imports: functions with their lengths, types, modules, paths.

use super::tokens::{Token, TokenKind, tokens};

/// What one file holds.
#[derive(Debug, Default)]
pub struct FileItems {
    /// Lines of the file.
    pub lines: usize,
    /// Lines of items under `#[cfg(test)]` or `#[test]`.
    pub test_lines: usize,
    pub functions: Vec<FunctionLength>,
    /// Structs, enums, unions, traits and type aliases at the level of modules.
    pub types: Vec<String>,
    /// The file's own module first, then the modules written inside it.
    pub modules: Vec<ModuleItems>,
}

/// A function outside tests.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FunctionLength {
    pub name: String,
    /// First line.
    pub line: usize,
    /// Lines from `fn` to the closing brace.
    pub lines: usize,
}

/// A module of a file.
#[derive(Debug, Default)]
pub struct ModuleItems {
    /// Names below the file's own module; empty for that one.
    pub path: Vec<String>,
    /// Names that are defined here, modules apart.
    pub names: Vec<String>,
    /// Names that `use` brings here.
    pub imports: Vec<UseImport>,
    /// Other paths in the code, such as `super::read` in `super::read()`.
    pub paths: Vec<Vec<String>>,
    /// Modules in files of their own.
    pub children: Vec<ChildModule>,
}

/// One name of a `use`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UseImport {
    pub path: Vec<String>,
    /// The name here; `*` for all.
    pub name: String,
    /// Re-exports pass a name on and do not depend on it.
    pub reexport: bool,
}

/// `mod name;`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildModule {
    pub name: String,
    /// The file of `#[path = "file"]`.
    pub file: Option<String>,
    pub test: bool,
}

/// Reads a file.
pub fn file_items(source: &str) -> FileItems {
    let tokens = tokens(source);
    let mut reader = ItemReader {
        tokens: &tokens,
        file: FileItems {
            lines: source.lines().count(),
            modules: vec![ModuleItems::default()],
            ..FileItems::default()
        },
    };
    reader.items(0, tokens.len(), Some(0), 0);
    reader.file
}

struct ItemReader<'a> {
    tokens: &'a [Token],
    file: FileItems,
}

/// What stands before an item.
#[derive(Default)]
struct ItemAttributes {
    test: bool,
    path: Option<String>,
}

impl ItemReader<'_> {
    /// Items from `at` to `end`. `level` is the module whose items these are; `None` inside `impl`
    /// and `trait`. `module` is the module that paths start from.
    fn items(&mut self, mut at: usize, end: usize, level: Option<usize>, module: usize) {
        while at < end {
            let first = at;
            let attributes = self.attributes(&mut at);
            if at >= end {
                return;
            }
            let item_end = self.item_end(at, end);
            if attributes.test {
                let lines = self.line(item_end - 1) + 1 - self.line(first);
                self.test_child(at, &attributes, level);
                self.file.test_lines += lines;
            } else {
                self.item(at, item_end, &attributes, level, module);
            }
            at = item_end;
        }
    }

    fn line(&self, at: usize) -> usize {
        self.tokens.get(at).map_or(0, |token| token.line)
    }

    fn name(&self, at: usize) -> Option<&str> {
        self.tokens.get(at).and_then(Token::name)
    }

    fn is(&self, at: usize, symbol: char) -> bool {
        self.tokens.get(at).is_some_and(|token| token.is(symbol))
    }

    /// Skips `#[…]` and `#![…]`.
    fn attributes(&self, at: &mut usize) -> ItemAttributes {
        let mut attributes = ItemAttributes::default();
        while self.is(*at, '#') {
            let open = *at + 1 + usize::from(self.is(*at + 1, '!'));
            let close = self.matching(open);
            let inside = &self.tokens[open..close];
            let names: Vec<&str> = inside.iter().filter_map(Token::name).collect();
            attributes.test |= names == ["test"]
                || (names.first() == Some(&"cfg")
                    && names.contains(&"test")
                    && !names.contains(&"not"));
            if names.first() == Some(&"path") {
                attributes.path = inside.iter().find_map(|token| match &token.kind {
                    TokenKind::Text(text) => Some(text.clone()),
                    _ => None,
                });
            }
            *at = close + 1;
        }
        attributes
    }

    /// The closing bracket of the one at `open`.
    fn matching(&self, open: usize) -> usize {
        let mut depth = 0usize;
        for (at, token) in self.tokens.iter().enumerate().skip(open) {
            if let TokenKind::Symbol(symbol) = token.kind {
                match symbol {
                    '(' | '[' | '{' => depth += 1,
                    ')' | ']' | '}' => {
                        depth = depth.saturating_sub(1);
                        if depth == 0 {
                            return at;
                        }
                    }
                    _ => {}
                }
            }
        }
        self.tokens.len() - 1
    }

    /// One behind the `;` or `}` that ends the item at `at`.
    fn item_end(&self, mut at: usize, end: usize) -> usize {
        let is_use = (at..end.min(at + 6)).find(|&i| self.name(i) == Some("use"));
        while at < end {
            if self.is(at, ';') {
                return at + 1;
            }
            if self.is(at, '{') && is_use.is_none() {
                return (self.matching(at) + 1).min(end);
            }
            if self.is(at, '(') || self.is(at, '[') || self.is(at, '{') {
                at = self.matching(at);
            }
            at += 1;
        }
        end
    }

    fn test_child(&mut self, at: usize, attributes: &ItemAttributes, level: Option<usize>) {
        let at = self.after_visibility(at).0;
        if let (Some(level), Some("mod"), Some(name)) = (level, self.name(at), self.name(at + 1))
            && self.is(at + 2, ';')
        {
            let child = ChildModule {
                name: name.to_owned(),
                file: attributes.path.clone(),
                test: true,
            };
            self.file.modules[level].children.push(child);
        }
    }

    /// Behind `pub`, `pub(…)`; whether it stood there.
    fn after_visibility(&self, at: usize) -> (usize, bool) {
        if self.name(at) != Some("pub") {
            return (at, false);
        }
        let restricted = self.is(at + 1, '(');
        (
            if restricted {
                self.matching(at + 1) + 1
            } else {
                at + 1
            },
            true,
        )
    }

    fn item(
        &mut self,
        start: usize,
        end: usize,
        attributes: &ItemAttributes,
        level: Option<usize>,
        module: usize,
    ) {
        let (mut at, public) = self.after_visibility(start);
        while matches!(
            self.name(at),
            Some("unsafe" | "async" | "default" | "extern")
        ) || (self.name(at) == Some("const")
            && matches!(self.name(at + 1), Some("fn" | "unsafe" | "async")))
            || matches!(
                self.tokens.get(at).map(|token| &token.kind),
                Some(TokenKind::Text(_))
            )
        {
            at += 1;
        }
        let keyword = self.name(at).unwrap_or_default().to_owned();
        let name = self.name(at + 1).unwrap_or_default().to_owned();
        if let Some(level) = level {
            match keyword.as_str() {
                "use" => {
                    let mut imports = Vec::new();
                    self.use_tree(at + 1, end, &[], public, &mut imports);
                    self.file.modules[level].imports.extend(imports);
                    return;
                }
                "mod" => return self.module(at, end, attributes, level),
                "struct" | "enum" | "union" | "trait" | "type" => {
                    self.file.types.push(name.clone());
                    self.file.modules[level].names.push(name);
                }
                "fn" | "const" | "static" => self.file.modules[level].names.push(name),
                "macro_rules" => {
                    let name = self.name(at + 2).map(str::to_owned);
                    return self.file.modules[level].names.extend(name);
                }
                _ => {}
            }
        }
        let body = (at..end).find(|&i| self.is(i, '{'));
        match (keyword.as_str(), body) {
            ("impl" | "trait", Some(body)) => {
                self.paths(at, body, module);
                self.items(body + 1, end - 1, None, module);
            }
            _ => {
                self.functions(at, end);
                self.paths(at, end, module);
            }
        }
    }

    fn module(&mut self, at: usize, end: usize, attributes: &ItemAttributes, level: usize) {
        let name = self.name(at + 1).unwrap_or_default().to_owned();
        if self.is(at + 2, ';') {
            self.file.modules[level].children.push(ChildModule {
                name,
                file: attributes.path.clone(),
                test: false,
            });
            return;
        }
        let mut path = self.file.modules[level].path.clone();
        path.push(name);
        self.file.modules.push(ModuleItems {
            path,
            ..ModuleItems::default()
        });
        let inner = self.file.modules.len() - 1;
        self.items(at + 3, end - 1, Some(inner), inner);
    }

    /// The names of `a::{b, c as d, e::*}` from `at` to `end`.
    fn use_tree(
        &self,
        mut at: usize,
        end: usize,
        prefix: &[String],
        reexport: bool,
        imports: &mut Vec<UseImport>,
    ) -> usize {
        let mut path = prefix.to_vec();
        let mut name = None;
        while at < end {
            if self.is(at, '{') {
                let close = self.matching(at);
                at += 1;
                while at < close {
                    at = self.use_tree(at, close, &path, reexport, imports);
                }
                return (close + 1).max(at) + usize::from(self.is(close + 1, ','));
            }
            match self.name(at) {
                Some("as") => {
                    name = self.name(at + 1).map(str::to_owned);
                    at += 1;
                }
                Some("self") if !path.is_empty() => {}
                Some(part) => path.push(part.to_owned()),
                None if self.is(at, '*') => name = Some("*".to_owned()),
                None if self.is(at, ',') || self.is(at, ';') => break,
                None => {}
            }
            at += 1;
        }
        if let Some(name) = name.or_else(|| path.last().cloned()) {
            imports.push(UseImport {
                path,
                name,
                reexport,
            });
        }
        at + 1
    }

    /// Records the functions from `at` to `end`, those inside functions included.
    fn functions(&mut self, at: usize, end: usize) {
        for i in at..end {
            if self.name(i) != Some("fn") {
                continue;
            }
            let Some(name) = self.name(i + 1) else {
                continue;
            };
            let close = self.item_end(i, end);
            if close > i && self.is(close - 1, '}') {
                let function = FunctionLength {
                    name: name.to_owned(),
                    line: self.line(i),
                    lines: self.line(close - 1) + 1 - self.line(i),
                };
                self.file.functions.push(function);
            }
        }
    }

    /// Records the paths from `at` to `end`, and what `use` inside functions brings.
    fn paths(&mut self, mut at: usize, end: usize, module: usize) {
        while at < end {
            if self.name(at) == Some("use") {
                let close = self.item_end(at, end);
                let mut imports = Vec::new();
                self.use_tree(at + 1, close, &[], false, &mut imports);
                let paths = imports.into_iter().map(|import| import.path);
                self.file.modules[module].paths.extend(paths);
                at = close;
                continue;
            }
            let mut path = Vec::new();
            while let Some(name) = self.name(at).filter(|_| at < end) {
                path.push(name.to_owned());
                let separated = self.tokens.get(at + 1).map(|token| &token.kind)
                    == Some(&TokenKind::PathSeparator);
                if !separated || self.name(at + 2).is_none() {
                    break;
                }
                at += 2;
            }
            if path.len() > 1 {
                self.file.modules[module].paths.push(path);
            }
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = r#"
use crate::a::{B, c::{self, D as E}};
pub use self::f::*;
mod f;
#[cfg(test)]
#[path = "g_tests.rs"]
mod g;
pub struct S([u8; 2]);
impl S {
    type Inner = u8;
    fn long(&self) {
        super::h();
        fn nested() {}
    }
}
#[cfg(test)]
mod tests {
    struct T;
    fn not_counted() {}
}
"#;

    #[test]
    fn a_file_is_read() {
        let file = file_items(SOURCE);
        assert_eq!(file.types, ["S"]);
        let lengths: Vec<_> = file
            .functions
            .iter()
            .map(|f| (f.name.as_str(), f.lines))
            .collect();
        assert_eq!(lengths, [("long", 4), ("nested", 1)]);
        assert_eq!((file.lines, file.test_lines), (20, 8));
        let module = &file.modules[0];
        let imported: Vec<_> = module
            .imports
            .iter()
            .map(|import| {
                (
                    import.path.join("::"),
                    import.name.as_str(),
                    import.reexport,
                )
            })
            .collect();
        let expected = [
            ("crate::a::B", "B", false),
            ("crate::a::c", "c", false),
            ("crate::a::c::D", "E", false),
            ("self::f", "*", true),
        ];
        assert_eq!(
            imported,
            expected.map(|(path, name, public)| (path.to_owned(), name, public))
        );
        assert!(
            module
                .paths
                .contains(&vec!["super".to_owned(), "h".to_owned()])
        );
        let children: Vec<_> = module
            .children
            .iter()
            .map(|c| (c.name.as_str(), c.test))
            .collect();
        assert_eq!(children, [("f", false), ("g", true)]);
        assert_eq!(module.children[1].file.as_deref(), Some("g_tests.rs"));
    }
}
