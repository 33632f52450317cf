"""The page of one run: what it shows, that it follows the run, and that its server gives nothing else."""

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from darts_sg.analysis.curves import Panel, search_panels
from darts_sg.analysis.run_folder import read_run
from darts_sg.analysis.run_page import RunPage, chart, run_page, ticks_of
from darts_sg.analysis.serving import HOST, Server, make_server
from darts_sg.genotype import load_genotype
from tests.analysis.fakes import varied_search
from tests.analysis.runs import make_run
from tests.test_command_line import in_process


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "secret.txt").write_text("secret")
    with make_server(RunPage(varied_search(tmp_path / "run", 4)), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def answer(server: Server, path: str, host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection(HOST, server.server_port, timeout=20)
    try:
        connection.request("GET", path, headers={"Host": host or f"{HOST}:{server.server_port}"})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_the_page_follows_the_run_and_nothing_else_is_served(server: Server, tmp_path: Path) -> None:
    status, page = answer(server, "/")
    assert status == 200
    assert "Finished: 3 epochs" in page
    assert "cifar10 (JPEG q75)" in page
    assert page.count("<svg") >= 2
    before = json.loads(answer(server, "/state.json")[1])["version"]
    assert f'follow("{before}"' in page
    metrics = tmp_path / "run" / "metrics.csv"
    metrics.write_text(metrics.read_text() + "4,1.0,0.5,2.0,0.4\n")
    live = server.RequestHandlerClass.args[0]  # type: ignore[attr-defined]
    live._keep_until = 0.0  # as if the page had been made long ago
    assert json.loads(answer(server, "/state.json")[1])["version"] != before
    assert "Finished: 4 epochs" in answer(server, "/")[1]
    assert answer(server, "/metrics.csv") == (200, metrics.read_text())
    assert answer(server, "/../secret.txt")[0] == 404
    assert answer(server, "/", "evil.example")[0] == 403


def test_texts_of_a_run_cannot_become_markup_and_one_epoch_is_enough(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", load_genotype("DARTS_V1"), error=12.5)
    empty = run_page(read_run(folder), "v1")
    assert "12.50%" in empty
    assert "No epoch is finished yet" in empty
    (folder / "metrics.csv").write_text("epoch,train_loss,seconds\n1,2.5,60\n")
    (folder / "log.txt").write_text("<script>alert(1)</script>\n")
    page = run_page(read_run(folder), "v2")
    assert page.count("<svg") == 1
    assert "<script>alert" not in page


def test_options_that_do_not_go_together_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = str(varied_search(tmp_path / "run", 2))
    for arguments, message in (
        (["--port", "1"], "--port is for --watch"),
        (["--watch", "--json"], "--json writes a report, and --watch shows a run"),
        (["--watch", "--port", "70000"], "--port must be from 0 to 65535"),
    ):
        code, _, err = in_process(capsys, "report", folder, *arguments)
        assert (code, message in err) == (2, True), err
    code, _, err = in_process(capsys, "report", str(tmp_path), "--watch")
    assert (code, "is not the folder of a run" in err) == (2, True)


@pytest.mark.parametrize(
    ("low", "high", "options", "ticks"),
    [
        (1.07, 1.99, {}, [1.0, 1.25, 1.5, 1.75, 2.0]),
        (0, 3, {"whole": True}, [0, 1, 2, 3]),
        (0, 0, {}, [0, 0.25, 0.5, 0.75, 1]),
        (2.11, 2.19, {"top": 2.197}, [0, 1, 2, 3]),
    ],
)
def test_an_axis_has_round_ticks_and_its_fixed_ends(
    low: float, high: float, options: dict[str, Any], ticks: list[float]
) -> None:
    assert ticks_of(low, high, Panel("a panel", (), **options)) == pytest.approx(ticks)


def test_the_entropy_has_the_line_of_even_weights() -> None:
    entropy = next(panel for panel in search_panels((), 9) if panel.title.startswith("Entropy"))
    drawn = chart([{"epoch": 1.0, "entropy_normal": 2.1}], entropy)
    assert "even weights: ln 9" in drawn
    assert drawn.count('<line class="top"') == 1
