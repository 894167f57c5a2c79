# SPDX-License-Identifier: GPL-2.0-or-later
"""What a document's console blocks promise, told from what is printed."""

import pytest
from tests.lib.transcript import Step, blocks_of

DOCUMENT = """
Text.

```console
$ true
$ cat >file <<'EOF'
> one
>
> two
> EOF
$ memshare list
DOMAIN   STATE
...
web1     running
```

```toml
[ksm]
```
"""


def test_commands_go_on_and_have_their_output() -> None:
    console, toml = blocks_of(DOCUMENT)
    assert (console.language, toml.language) == ("console", "toml")
    assert console.steps() == [
        Step(5, "true\n", ""),
        Step(6, "cat >file <<'EOF'\none\n\ntwo\nEOF\n", ""),
        Step(11, "memshare list\n", "DOMAIN   STATE\n...\nweb1     running\n"),
    ]


@pytest.mark.parametrize(
    ("shown", "output", "is_true"),
    [
        ("", "", True),
        ("", "something\n", False),
        ("web1: attached\n", "", False),
        ("web1: attached\n", "web1: attached\n", True),
        ("web1: attached\n", "web1: attached\nweb2: attached\n", False),
        ("web1: attached (config)\n", "web1: attached [config]\n", False),
        ("saved ...iB of 144 MiB\n", "saved    1.5 MiB of 144 MiB\n", True),
        ("saved ...iB of 144 MiB\n", "saved    0 B of 144 MiB\n", False),
        ("...\nlast\n", "last\n", True),
        ("...\nlast\n", "\n first\n ────\n last \n\n", True),
        ("first\n...\nlast\n", "first\nlast\nmore\n", False),
    ],
)
def test_what_is_shown_is_what_is_printed(shown: str, output: str, is_true: bool) -> None:
    assert Step(1, "command\n", shown).is_shown_by(output) is is_true
