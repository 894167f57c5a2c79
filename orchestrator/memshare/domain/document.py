# SPDX-License-Identifier: GPL-2.0-or-later
"""A domain's XML as a tree: reading, writing, and children that come and go without a trace.

lxml keeps prefixes, comments and white space. A child is put where the indentation wants it, and taking
it away again leaves the text as it was before.
"""

from lxml import etree

from memshare.errors import MemshareError

Element = etree._Element


def parse(text: str) -> Element:
    """Return the root. Raises MemshareError for what is no XML, and for what libvirt never writes."""
    # The text is decoded already, whatever its declaration says. No entity is looked up anywhere.
    parser = etree.XMLParser(
        encoding="utf-8", resolve_entities=False, no_network=True, strip_cdata=False
    )
    try:
        root = etree.fromstring(text.encode(), parser)
    except (etree.XMLSyntaxError, UnicodeEncodeError) as error:
        raise MemshareError(f"no XML: {error}") from error
    if root.getroottree().docinfo.doctype:
        raise MemshareError("no domain of libvirt: it has a document type")
    if root.tag != "domain":
        raise MemshareError(f"no domain of libvirt: its root is <{etree.QName(root).localname}>")
    return root


def text_of(root: Element) -> str:
    """Return the whole document, comments around the root included, each on a line of its own."""
    nodes = [*reversed(list(root.itersiblings(preceding=True))), root, *root.itersiblings()]
    lines = [etree.tostring(node, encoding="unicode", with_tail=False) for node in nodes]
    return "\n".join(lines) + "\n"


def append(parent: Element, child: Element) -> None:
    """Add a last child, indented as its siblings are; on the same line where nothing is indented."""
    inner, outer = _indents(parent)
    if len(parent) == 0:
        if not _blank(parent.text):
            inner = outer = None
        elif inner is not None:
            parent.text = inner
        parent.append(child)
        child.tail = outer
        return
    last = parent[-1]
    parent.append(child)
    if _blank(last.tail):
        last.tail, child.tail = inner, last.tail
    else:
        child.tail = None


def remove(child: Element) -> None:
    """Take a child away and give its place's white space back."""
    parent, previous, tail = child.getparent(), child.getprevious(), child.tail
    assert parent is not None
    child.tail = None  # or lxml takes it along
    parent.remove(child)
    if previous is None:
        if _blank(parent.text) and _blank(tail):
            parent.text = parent.text if len(parent) else tail
        else:
            parent.text = (parent.text or "") + (tail or "")
    elif _blank(previous.tail) and _blank(tail):
        previous.tail = tail
    else:
        previous.tail = (previous.tail or "") + (tail or "")


def is_empty(element: Element) -> bool:
    """Whether nothing is in it: no child, comment or text."""
    return len(element) == 0 and _blank(element.text)


def _indents(parent: Element) -> tuple[str | None, str | None]:
    """White space before a child of this parent, and before the parent's end."""
    if len(parent) > 0:
        return (parent.text if _blank(parent.text) else None), None
    above, previous = parent.getparent(), parent.getprevious()
    if above is None:
        return None, None
    before = above.text if previous is None else previous.tail
    if not before or not _blank(before) or "\n" not in before:
        return None, None
    return before + "  ", before


def _blank(text: str | None) -> bool:
    return not text or text.isspace()
