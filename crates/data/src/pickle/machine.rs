//! The stack machine that a pickle is a program for.
//!
//! The length of the pickle, the number of values and the number of references are limited, so that
//! a hostile file gives an error before it takes much memory: no more than a multiple of its size.

use std::borrow::Cow;
use std::collections::HashMap;

use super::input::Input;
use super::node::{Id, Node, Result};
use super::stack::Stack;

/// Most values in a pickle: several times what the largest published one has.
pub(super) const MOST_NODES: usize = 1 << 22;
/// Most references to values, on the stack and in containers, counted as they are pushed.
const MOST_PUSHES: usize = 1 << 24;
/// Longer texts are kept by libraries alone that keep blocks of bytes.
const LONGEST_TEXT: u64 = 1 << 12;
/// The longest name of a class or a function with its module.
const LONGEST_NAME: usize = 100;

/// What a call or a new object gives.
pub enum Made<'a, O> {
    /// A new value.
    New(Node<'a, O>),
    /// A value that is there already.
    Same(Id),
}

/// What the classes and functions of a library build. Any other gives [`Node::Other`].
pub trait Library<'a> {
    /// Nodes that only pickles of this library have.
    type Object;

    /// Whether bytes and long texts are kept: where they are numbers.
    const KEEPS_BLOCKS: bool;

    /// What a call of a function gives.
    ///
    /// # Errors
    /// The arguments are not those of such a function.
    fn call(
        &mut self,
        function: &str,
        arguments: &[Id],
        nodes: &[Node<'a, Self::Object>],
    ) -> Result<Made<'a, Self::Object>>;

    /// What a new object of a class is, before its state is set.
    ///
    /// # Errors
    /// As [`Library::call`].
    fn object(
        &mut self,
        class: &str,
        arguments: &[Id],
        nodes: &[Node<'a, Self::Object>],
    ) -> Result<Made<'a, Self::Object>> {
        self.call(class, arguments, nodes)
    }

    /// What an object becomes by its state; none where it stays as it is.
    ///
    /// # Errors
    /// The state is not that of such an object.
    fn with_state(
        &self,
        _object: Id,
        _state: Id,
        _nodes: &[Node<'a, Self::Object>],
    ) -> Result<Option<Node<'a, Self::Object>>> {
        Ok(None)
    }

    /// What a reference to something outside the pickle gives.
    ///
    /// # Errors
    /// The library has no such references, or this is none of them.
    fn outside(
        &self,
        _reference: Id,
        _nodes: &[Node<'a, Self::Object>],
    ) -> Result<Node<'a, Self::Object>> {
        Err("a reference to a value outside the pickle".to_owned())
    }
}

/// The values of a pickle.
#[derive(Debug)]
pub struct PickleNodes<'a, O> {
    /// By number.
    pub nodes: Vec<Node<'a, O>>,
    /// The outermost.
    pub root: Id,
}

/// Reads one pickle.
///
/// # Errors
/// It breaks off, does what no pickle of such values does, or is beyond the limits; with the place
/// in words.
pub fn run<'a, L: Library<'a>>(
    input: &mut impl Input<'a>,
    library: &mut L,
) -> Result<PickleNodes<'a, L::Object>> {
    let mut machine = Machine {
        globals: library,
        nodes: Vec::new(),
        stack: Stack::default(),
        memo: HashMap::new(),
        pushes: 0,
    };
    loop {
        let place = input.place();
        match machine.step(input) {
            Ok(None) => {}
            Ok(Some(root)) => {
                return Ok(PickleNodes {
                    nodes: machine.nodes,
                    root,
                });
            }
            Err(problem) => return Err(format!("{problem}, at byte {place} of the pickle")),
        }
    }
}

struct Machine<'l, 'a, L: Library<'a>> {
    /// Builds the objects of the classes and functions that the pickle names.
    globals: &'l mut L,
    nodes: Vec<Node<'a, L::Object>>,
    stack: Stack<Id>,
    memo: HashMap<u64, Id>,
    pushes: usize,
}

impl<'a, L: Library<'a>> Machine<'_, 'a, L> {
    /// One opcode; the root when it was the last.
    fn step(&mut self, input: &mut impl Input<'a>) -> Result<Option<Id>> {
        let [opcode] = input.array()?;
        match opcode {
            b'.' => return self.stack.pop().map(Some),
            0x80 => match input.array::<1>()? {
                // Older protocols do not say which they are.
                [2..=5] => {}
                [version] => return Err(format!("protocol {version}, expected 2 to 5")),
            },
            // The length of a frame, which says nothing new.
            0x95 => drop(input.array::<8>()?),

            b'(' => {
                self.count(1)?;
                self.stack.mark();
            }
            b'0' => {
                if !self.stack.unmark() {
                    self.stack.pop()?;
                }
            }
            b'1' => drop(self.stack.pop_to_mark()?),
            b'2' => {
                let top = self.stack.top()?;
                self.push(top)?;
            }

            b'N' | 0x88 | 0x89 | b'J' | b'K' | b'M' | b'I' | b'L' | b'F' | b'G' | 0x8a | 0x8b => {
                let node = number(opcode, input)?;
                self.make(node)?;
            }
            b'X' | 0x8c | 0x8d | b'V' | b'S' | b'U' | b'T' | b'C' | b'B' | 0x8e | 0x96 => {
                let node = block(opcode, input, L::KEEPS_BLOCKS)?;
                self.make(node)?;
            }

            b')'
            | b']'
            | 0x8f
            | b't'
            | b'l'
            | 0x91
            | 0x85..=0x87
            | b'a'
            | b'e'
            | 0x90
            | b'}'
            | b'd'
            | b's'
            | b'u' => self.step_of_containers(opcode)?,

            b'p' | b'q' | b'r' | 0x94 => {
                let slot = match opcode {
                    b'p' => slot(&input.line()?)?,
                    b'q' => input.length(1)?,
                    b'r' => input.length(4)?,
                    _ => self.memo.len() as u64,
                };
                self.put(slot)?;
            }
            b'g' => self.get(slot(&input.line()?)?)?,
            b'h' => self.get(input.length(1)?)?,
            b'j' => self.get(input.length(4)?)?,

            b'c' | 0x93 | b'R' | 0x81 | 0x92 | b'o' | b'i' | b'b' | b'Q' => {
                self.step_of_objects(opcode, input)?;
            }
            other => {
                return Err(format!(
                    "opcode {other:#04x}, which no pickle of such values has"
                ));
            }
        }
        Ok(None)
    }

    /// An opcode of lists, tuples, sets and dictionaries.
    fn step_of_containers(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            b')' | b']' | 0x8f => self.make(Node::List(Vec::new())),
            b't' | b'l' | 0x91 => {
                let items = self.stack.pop_to_mark()?;
                self.make(Node::List(items))
            }
            0x85..=0x87 => {
                let items = self.stack.pop_many(usize::from(opcode - 0x84))?;
                self.make(Node::List(items))
            }
            b'a' => {
                let item = self.stack.pop()?;
                self.append(vec![item])
            }
            b'e' | 0x90 => {
                let items = self.stack.pop_to_mark()?;
                self.append(items)
            }
            b'}' => self.make(Node::Dict(Vec::new())),
            b'd' => {
                let items = self.stack.pop_to_mark()?;
                self.make(Node::Dict(pairs(&items)?))
            }
            b's' => {
                let items = self.stack.pop_many(2)?;
                self.set(&items)
            }
            // b'u'
            _ => {
                let items = self.stack.pop_to_mark()?;
                self.set(&items)
            }
        }
    }

    /// An opcode of classes, functions and what they give.
    fn step_of_objects(&mut self, opcode: u8, input: &mut impl Input<'a>) -> Result<()> {
        match opcode {
            b'c' => {
                let (module, name) = (input.line()?, input.line()?);
                self.make(global(&module, &name))
            }
            0x93 => {
                let (name, module) = (self.stack.pop()?, self.stack.pop()?);
                let (module, name) = (self.nodes[module].text(), self.nodes[name].text());
                let (Some(module), Some(name)) = (module, name) else {
                    return Err("a class whose name is not a text".to_owned());
                };
                let global = global(module, name);
                self.make(global)
            }
            b'R' | 0x81 => {
                let (arguments, callable) = (self.stack.pop()?, self.stack.pop()?);
                self.call(callable, arguments, opcode == b'R')
            }
            0x92 => {
                // Arguments by name come last.
                self.stack.pop()?;
                let (arguments, class) = (self.stack.pop()?, self.stack.pop()?);
                self.call(class, arguments, false)
            }
            b'o' => {
                self.stack.pop_to_mark()?;
                self.make(Node::Other)
            }
            b'i' => {
                input.line()?;
                input.line()?;
                self.stack.pop_to_mark()?;
                self.make(Node::Other)
            }
            b'b' => {
                let (state, object) = (self.stack.pop()?, self.stack.top()?);
                if let Some(node) = self.globals.with_state(object, state, &self.nodes)? {
                    self.nodes[object] = node;
                }
                Ok(())
            }
            _ => {
                let reference = self.stack.pop()?;
                let node = self.globals.outside(reference, &self.nodes)?;
                self.make(node)
            }
        }
    }

    fn count(&mut self, pushes: usize) -> Result<()> {
        self.pushes += pushes;
        if self.pushes > MOST_PUSHES {
            return Err(format!("more than {MOST_PUSHES} references to values"));
        }
        Ok(())
    }

    fn push(&mut self, id: Id) -> Result<()> {
        self.count(1)?;
        self.stack.push(id);
        Ok(())
    }

    fn make(&mut self, node: Node<'a, L::Object>) -> Result<()> {
        if self.nodes.len() == MOST_NODES {
            return Err(format!("more than {MOST_NODES} values"));
        }
        let id = self.nodes.len();
        self.nodes.push(node);
        self.push(id)
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let list = self.stack.top()?;
        match &mut self.nodes[list] {
            Node::List(list) => list.extend(items),
            // Of a class that is not known.
            Node::Other | Node::Dict(_) => {}
            _ => return Err("values are added to what is no list".to_owned()),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Result<()> {
        let dict = self.stack.top()?;
        let entries = pairs(items)?;
        match &mut self.nodes[dict] {
            Node::Dict(dict) => dict.extend(entries),
            Node::Other => {}
            _ => return Err("entries are set in what is no dictionary".to_owned()),
        }
        Ok(())
    }

    fn put(&mut self, slot: u64) -> Result<()> {
        let top = self.stack.top()?;
        if self.memo.len() >= MOST_NODES {
            return Err(format!("more than {MOST_NODES} values in the memo"));
        }
        self.memo.insert(slot, top);
        Ok(())
    }

    fn get(&mut self, slot: u64) -> Result<()> {
        match self.memo.get(&slot).copied() {
            Some(id) => self.push(id),
            None => Err(format!("memo {slot} is used and was never stored")),
        }
    }

    fn call(&mut self, callable: Id, arguments: Id, function: bool) -> Result<()> {
        let (Node::Global(name), Node::List(arguments)) =
            (&self.nodes[callable], &self.nodes[arguments])
        else {
            return self.make(Node::Other);
        };
        let made = if function {
            self.globals.call(name, arguments, &self.nodes)?
        } else {
            self.globals.object(name, arguments, &self.nodes)?
        };
        match made {
            Made::Same(id) => self.push(id),
            Made::New(node) => {
                if let Node::Dict(entries) = &node {
                    self.count(entries.len())?;
                }
                self.make(node)
            }
        }
    }
}

/// A value that an opcode of `None`, truth or numbers holds.
fn number<'a, O>(opcode: u8, input: &mut impl Input<'a>) -> Result<Node<'a, O>> {
    Ok(match opcode {
        0x88 => Node::Bool(true),
        0x89 => Node::Bool(false),
        b'J' => Node::Int(i32::from_le_bytes(input.array()?).into()),
        b'K' => Node::Int(u8::from_le_bytes(input.array()?).into()),
        b'M' => Node::Int(u16::from_le_bytes(input.array()?).into()),
        b'I' => match input.line()?.as_str() {
            "00" => Node::Bool(false),
            "01" => Node::Bool(true),
            line => line.parse().map_or(Node::Other, Node::Int),
        },
        b'L' => { input.line()?.trim_end_matches('L').parse() }.map_or(Node::Other, Node::Int),
        b'F' => input.line()?.parse().map_or(Node::Other, Node::Float),
        b'G' => Node::Float(f64::from_be_bytes(input.array()?)),
        0x8a => {
            let length = input.length(1)?;
            long(&input.take(length)?)
        }
        // A number of any length.
        0x8b => {
            let length = input.length(4)?;
            input.skip(length)?;
            Node::Other
        }
        _ => Node::Other,
    })
}

/// A value that an opcode of texts or bytes holds; of a text that is too long, or not UTF-8,
/// nothing is kept.
fn block<'a, O>(opcode: u8, input: &mut impl Input<'a>, keep: bool) -> Result<Node<'a, O>> {
    let bytes = match opcode {
        b'V' => return Ok(Node::Text(input.line()?.into())),
        b'S' => {
            let line = input.line()?;
            return Ok(Node::Text(line.trim_matches(['\'', '"']).to_owned().into()));
        }
        b'U' | b'C' | 0x8c => 1,
        b'T' | b'B' | b'X' => 4,
        _ => 8,
    };
    let length = input.length(bytes)?;
    // Texts of Python 2 are bytes.
    let text = matches!(opcode, b'X' | 0x8c | 0x8d);
    let bytes_alone = matches!(opcode, b'C' | b'B' | 0x8e | 0x96);
    if !keep && (bytes_alone || length > LONGEST_TEXT) {
        input.skip(length)?;
        return Ok(Node::Other);
    }
    let bytes = input.take(length)?;
    if !text {
        return Ok(Node::Bytes(bytes));
    }
    Ok(match bytes {
        Cow::Borrowed(bytes) => {
            std::str::from_utf8(bytes).map_or(Node::Other, |text| Node::Text(text.into()))
        }
        Cow::Owned(bytes) => {
            String::from_utf8(bytes).map_or(Node::Other, |text| Node::Text(text.into()))
        }
    })
}

/// A class or a function; one of a longer name is not known.
fn global<'a, O>(module: &str, name: &str) -> Node<'a, O> {
    if module.len() + name.len() < LONGEST_NAME {
        Node::Global(format!("{module}.{name}"))
    } else {
        Node::Other
    }
}

/// A little-endian number in two's complement; of more than 64 bits it is of no use here.
fn long<'a, O>(bytes: &[u8]) -> Node<'a, O> {
    if bytes.len() > 8 {
        return Node::Other;
    }
    let negative = bytes.last().is_some_and(|last| *last >= 0x80);
    let mut value = [if negative { 0xff } else { 0 }; 8];
    value[..bytes.len()].copy_from_slice(bytes);
    Node::Int(i64::from_le_bytes(value))
}

fn slot(line: &str) -> Result<u64> {
    line.parse()
        .map_err(|_| format!("memo `{line}`, which is no number"))
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    if rest.is_empty() {
        return Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect());
    }
    Err("a dictionary with a key and no value".to_owned())
}
