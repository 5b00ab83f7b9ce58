//! The little of XML that S3's answers need: a small tree. Pure.

use quick_xml::Reader;
use quick_xml::events::Event;

/// Deepest nesting that is read; S3's documents have five levels.
const DEPTH_MAX: usize = 32;

/// An element with what is in it; attributes and name spaces are left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) name: String,
    pub(super) text: String,
    pub(super) children: Vec<Self>,
}

impl Element {
    /// Its children of one name.
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &Self> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The element below it by the names that lead to it.
    pub(super) fn at<'a>(&'a self, path: &[&str]) -> Option<&'a Self> {
        let child = |of: &'a Self, name: &str| of.children.iter().find(|it| it.name == name);
        path.iter().try_fold(self, |element, name| child(element, name))
    }
}

/// The root of a document; `None` where it is not whole. White space may come before it: it kept a
/// connection alive.
pub(super) fn parse(text: &[u8]) -> Option<Element> {
    let mut reader = Reader::from_reader(text.trim_ascii_start());
    // The elements that are open, with the document itself below them.
    let mut open = vec![Element::default()];
    loop {
        match reader.read_event().ok()? {
            Event::Start(tag) if open.len() < DEPTH_MAX => {
                let name = tag.local_name().as_ref().to_owned();
                open.push(Element { name, ..Element::default() });
            }
            Event::Start(_) => return None,
            Event::Empty(tag) => {
                let name = tag.local_name().as_ref().to_owned();
                open.last_mut()?.children.push(Element { name, ..Element::default() });
            }
            Event::End(_) => {
                let element = open.pop()?;
                open.last_mut()?.children.push(element);
            }
            Event::Text(text) => open.last_mut()?.text.push_str(text.trim()),
            Event::Eof => break,
            Event::CData(_)
            | Event::Comment(_)
            | Event::Decl(_)
            | Event::PI(_)
            | Event::DocType(_)
            | Event::GeneralRef(_) => {}
        }
    }
    let document = open.pop().filter(|_| open.is_empty())?;
    document.children.into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_found_by_their_path() {
        let text = b"  \n <?xml version=\"1.0\"?>\n<R xmlns=\"x\"><F/><A> <B> one </B></A>\
            <A><B>two</B></A></R>";
        let root = parse(text).unwrap();
        assert_eq!(root.name, "R");
        assert_eq!(root.at(&["A", "B"]).unwrap().text, "one");
        let all: Vec<_> = root.all("A").filter_map(|a| a.at(&["B"])).map(|b| &*b.text).collect();
        assert_eq!(all, ["one", "two"]);
        assert!(root.at(&["F"]).unwrap().children.is_empty());
        assert_eq!(root.at(&["A", "C"]), None);
    }

    #[test]
    fn what_is_not_a_whole_document_is_none() {
        for text in ["", " ", "text", "<a><b></b>", "<a></b>", &"<a>".repeat(100)] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }
}
