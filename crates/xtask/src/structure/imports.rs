//! Which files of a crate import which, and the circles among them.

use std::collections::{BTreeMap, BTreeSet};

use super::items::{FileItems, ModuleItems, UseImport};

/// A file of a crate.
pub struct CrateFile {
    /// Path from the repository's root.
    pub path: String,
    /// Names from the crate's root to the file's module.
    pub module: Vec<String>,
    /// Compiled for tests only.
    pub test: bool,
    pub items: FileItems,
}

/// Re-exports of re-exports are followed this far.
const MOST_REEXPORTS: usize = 8;

/// Groups of files that import one another, directly or through others, largest first. Re-exports
/// do not count as imports: a file that imports a name through them depends on the file that
/// defines the name.
pub fn import_circles(files: &[CrateFile]) -> Vec<Vec<String>> {
    let graph = ModuleGraph::new(files);
    let edges: Vec<BTreeSet<usize>> = (0..files.len()).map(|file| graph.imported(file)).collect();
    let mut circles: Vec<Vec<String>> = strong_components(&edges)
        .into_iter()
        .filter(|component| component.len() > 1)
        .map(|component| {
            component
                .into_iter()
                .map(|file| files[file].path.clone())
                .collect()
        })
        .collect();
    circles.sort_by_key(|circle| std::cmp::Reverse(circle.len()));
    circles
}

struct ModuleGraph<'a> {
    files: &'a [CrateFile],
    /// Modules by their path from the crate's root, with their file.
    modules: BTreeMap<Vec<String>, (usize, &'a ModuleItems)>,
}

impl<'a> ModuleGraph<'a> {
    fn new(files: &'a [CrateFile]) -> Self {
        let mut modules = BTreeMap::new();
        for (index, file) in files.iter().enumerate().filter(|(_, file)| !file.test) {
            for module in &file.items.modules {
                let path = [&file.module[..], &module.path].concat();
                modules.insert(path, (index, module));
            }
        }
        Self { files, modules }
    }

    /// The files that a file imports from.
    fn imported(&self, file: usize) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        if self.files[file].test {
            return found;
        }
        for module in &self.files[file].items.modules {
            let here = [&self.files[file].module[..], &module.path].concat();
            let imports = module.imports.iter().filter(|import| !import.reexport);
            let paths = imports.map(|import| &import.path).chain(&module.paths);
            found.extend(paths.filter_map(|path| self.file_of(&here, path, MOST_REEXPORTS)));
        }
        found.remove(&file);
        found
    }

    /// The file that defines what `path` names in the module `here`; `None` outside the crate.
    fn file_of(&self, here: &[String], path: &[String], reexports: usize) -> Option<usize> {
        let mut module = here.to_vec();
        let mut rest = path;
        let first = rest.first()?.as_str();
        match first {
            "crate" => module.clear(),
            "self" => {}
            "super" => {
                module.pop()?;
            }
            child => {
                module.push(child.to_owned());
                self.modules.get(&module)?;
            }
        }
        rest = &rest[1..];
        while let [name, after @ ..] = rest {
            if name == "super" {
                module.pop()?;
            } else {
                module.push(name.clone());
                if !self.modules.contains_key(&module) {
                    module.pop();
                    break;
                }
            }
            rest = after;
        }
        let (file, items) = self.modules.get(&module)?;
        let Some(name) = rest.first().filter(|_| reexports > 0) else {
            return Some(*file);
        };
        if items.names.contains(name) {
            return Some(*file);
        }
        let import = |wanted: &str| items.imports.iter().find(|import| import.name == wanted);
        if let Some(UseImport { path, .. }) = import(name) {
            // A name of another crate is bound here.
            return self.file_of(&module, path, reexports - 1).or(Some(*file));
        }
        let all = items.imports.iter().filter(|import| import.name == "*");
        let through_all = all
            .filter_map(|import| {
                let path = [&import.path[..], std::slice::from_ref(name)].concat();
                self.file_of(&module, &path, reexports - 1)
            })
            .find(|found| self.defines(*found, name));
        Some(through_all.unwrap_or(*file))
    }

    fn defines(&self, file: usize, name: &str) -> bool {
        let modules = &self.files[file].items.modules;
        modules
            .iter()
            .any(|module| module.names.iter().any(|defined| defined == name))
    }
}

/// Strongly connected components, by Tarjan's algorithm; nodes in ascending order.
fn strong_components(edges: &[BTreeSet<usize>]) -> Vec<Vec<usize>> {
    struct State<'a> {
        edges: &'a [BTreeSet<usize>],
        order: Vec<Option<usize>>,
        lowest: Vec<usize>,
        on_stack: Vec<bool>,
        stack: Vec<usize>,
        visited: usize,
        components: Vec<Vec<usize>>,
    }
    fn visit(state: &mut State<'_>, node: usize) {
        state.order[node] = Some(state.visited);
        state.lowest[node] = state.visited;
        state.visited += 1;
        state.stack.push(node);
        state.on_stack[node] = true;
        for &next in &state.edges[node] {
            match state.order[next] {
                None => {
                    visit(state, next);
                    state.lowest[node] = state.lowest[node].min(state.lowest[next]);
                }
                Some(order) if state.on_stack[next] => {
                    state.lowest[node] = state.lowest[node].min(order);
                }
                Some(_) => {}
            }
        }
        if Some(state.lowest[node]) == state.order[node] {
            let mut component = Vec::new();
            while let Some(member) = state.stack.pop() {
                state.on_stack[member] = false;
                component.push(member);
                if member == node {
                    break;
                }
            }
            component.sort_unstable();
            state.components.push(component);
        }
    }
    let mut state = State {
        edges,
        order: vec![None; edges.len()],
        lowest: vec![0; edges.len()],
        on_stack: vec![false; edges.len()],
        stack: Vec::new(),
        visited: 0,
        components: Vec::new(),
    };
    for node in 0..edges.len() {
        if state.order[node].is_none() {
            visit(&mut state, node);
        }
    }
    state.components
}

#[cfg(test)]
mod tests {
    use super::super::items::file_items;
    use super::*;

    fn file(module: &[&str], source: &str) -> CrateFile {
        CrateFile {
            path: format!("{}.rs", module.last().unwrap_or(&"lib")),
            module: module.iter().map(|name| (*name).to_owned()).collect(),
            test: false,
            items: file_items(source),
        }
    }

    #[test]
    fn a_circle_through_a_reexport_is_found() {
        let files = [
            file(&[], "mod a; mod b; mod c; pub use a::A; pub use b::B;"),
            file(&["a"], "use crate::B; pub struct A;"),
            file(&["b"], "pub struct B; fn f() -> crate::A { crate::A }"),
            file(&["c"], "use crate::{A, B};"),
        ];
        assert_eq!(import_circles(&files), [["a.rs", "b.rs"]]);
    }

    #[test]
    fn imports_in_one_direction_are_no_circle() {
        let files = [
            file(&[], "pub mod a; pub use a::f;"),
            file(&["a"], "mod b; use b::g; pub fn f() { g() }"),
            file(
                &["a", "b"],
                "pub fn g() {} #[cfg(test)] mod tests { use super::super::f; }",
            ),
        ];
        assert!(import_circles(&files).is_empty());
    }
}
