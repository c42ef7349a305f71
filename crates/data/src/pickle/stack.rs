//! The stack of the machine that a pickle is a program for.

/// Values by number, and the marks among them: an opcode sees no value below the innermost mark.
#[derive(Debug, Default)]
pub(super) struct Stack<Id> {
    values: Vec<Id>,
    marks: Vec<usize>,
}

impl<Id: Copy> Stack<Id> {
    /// Puts a value on top.
    pub fn push(&mut self, value: Id) {
        self.values.push(value);
    }

    /// Sets a mark.
    pub fn mark(&mut self) {
        self.marks.push(self.values.len());
    }

    /// Takes the innermost mark away if nothing is above it.
    pub fn unmark(&mut self) -> bool {
        self.marks
            .pop_if(|mark| *mark == self.values.len())
            .is_some()
    }

    /// The value on top.
    ///
    /// # Errors
    /// There is none above the innermost mark.
    pub fn top(&self) -> Result<Id, String> {
        match self.above_mark().last() {
            Some(value) => Ok(*value),
            None => Err("a value is used that is not there".to_owned()),
        }
    }

    /// Takes the value on top.
    ///
    /// # Errors
    /// As [`Stack::top`].
    pub fn pop(&mut self) -> Result<Id, String> {
        let top = self.top()?;
        self.values.pop();
        Ok(top)
    }

    /// Takes the `count` values on top, the lowest first.
    ///
    /// # Errors
    /// There are fewer above the innermost mark.
    pub fn pop_many(&mut self, count: usize) -> Result<Vec<Id>, String> {
        if self.above_mark().len() < count {
            return Err("values are used that are not there".to_owned());
        }
        Ok(self.values.split_off(self.values.len() - count))
    }

    /// Takes the innermost mark and the values above it, the lowest first.
    ///
    /// # Errors
    /// There is no mark.
    pub fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        match self.marks.pop() {
            Some(mark) if mark <= self.values.len() => Ok(self.values.split_off(mark)),
            _ => Err("a mark is used that is not there".to_owned()),
        }
    }

    fn above_mark(&self) -> &[Id] {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.values.get(floor..).unwrap_or(&[])
    }
}
