"""Options that commands share."""

from __future__ import annotations

import pytest

from dcmt.cli import main


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    "command", ["predict", "evaluate", "attention", "verify", "compare", "review export", "review sanity"]
)
def test_every_command_that_opens_a_network_has_the_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    assert "--external-model" in capsys.readouterr().out
