"""The web chat without a browser: how it shows answers, and what happens without gradio."""

import sys

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schema.model_variant import ModelVariant
from serve_app.check import main
from serve_app.config.app_args import REPOSITORY
from serve_app.ui.answer import Answer, comparison, parts
from serve_app.ui.app import chat_app
from serve_app.ui.client import label_of, variants_of
from serve_app.ui.config import ChatArgs
from serve_app.ui.conversation import Settings, Turn, request_for
from serve_app.ui.display import escaped, messages

DEMO = Settings(ModelVariant("demo", "float32", 8), seed=7)


@pytest.mark.parametrize(
    ("reasoning", "content", "thinking", "text", "ended"),
    [
        ("", "Paris.", "", "Paris.", True),
        ("France ...", "", "France ...", "", False),
        ("France ...", "Paris.", "France ...", "Paris.", True),
        ("", "<think>\nFrance ...", "France ...", "", False),
        ("", "<think>\nFrance ...\n</think>\n\nParis.", "France ...", "Paris.", True),
        ("", "France ...\n</think>\n\nParis.", "France ...", "Paris.", True),
        ("", "Write <think> first.", "", "Write <think> first.", True),
    ],
)
def test_thinking_is_split_from_text(
    reasoning: str, content: str, thinking: str, text: str, ended: bool
) -> None:
    assert parts(Answer(reasoning=reasoning, content=content)) == (thinking, text, ended)


def test_thinking_is_folded() -> None:
    turn = Turn("?", (), DEMO, Answer(content="<think>hm</think>yes", finish_reason="stop"))
    _, thought, said = messages([turn])
    assert thought["content"] == [{"type": "text", "text": "hm"}]
    assert thought["metadata"] == {"title": "Thinking", "status": "done"}
    assert said["content"] == [{"type": "text", "text": "yes"}]


@given(st.text(), st.text(), st.text())
def test_a_comparison_finds_the_first_byte_that_differs(same: str, one: str, two: str) -> None:
    first, again = Answer(content=same + one), Answer(content=same + two)
    said = comparison(first, again)
    a, b = first.bytes, again.bytes
    if a == b:
        assert f"the same {len(a)} bytes." in said
    else:
        at = int(said.split("DIFFERENT at byte ")[1].split()[0])
        assert a[:at] == b[:at]
        assert a[at : at + 1] != b[at : at + 1]


def test_a_comparison_reports_another_system_and_another_end() -> None:
    first = Answer(content="yes", finish_reason="stop", fingerprint="fp_1")
    other = Answer(content="yes", finish_reason="length", fingerprint="fp_2")
    said = comparison(first, other)
    assert "'length' and not 'stop'" in said
    assert "fingerprints differ (fp_1 and fp_2)" in said


@pytest.mark.parametrize("text", ["<b>x</b>", "<script>1</script>", "a &lt; b", "<!-- x -->"])
def test_tags_and_entities_outside_of_code_are_escaped(text: str) -> None:
    assert "<" not in escaped(text)
    assert escaped(text).replace("&lt;", "<").replace("&amp;", "&") == text
    assert escaped(f"`{text}`") == f"`{text}`"
    assert escaped(f"```html\n{text}\n```\n{text}").startswith(f"```html\n{text}\n```\n")


def test_the_request_of_a_conversation() -> None:
    image = str(REPOSITORY / "demo" / "images" / "red_circle.png")
    turns = [
        Turn("What?", (image,), DEMO, Answer(content="A red circle.")),
        Turn("Sure?", (), DEMO),
    ]
    request = request_for(turns, seed=9)
    first, answer, last = request.pop("messages")
    assert first["content"][0]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert first["content"][1] == {"type": "text", "text": "What?"}
    assert answer == {"role": "assistant", "content": "A red circle."}
    assert last == {"role": "user", "content": "Sure?"}
    assert request == {
        "model": "demo",
        "dtype": "float32",
        "quantize_bits": 8,
        "temperature": 1.0,
        "top_p": 1.0,
        "seed": 9,
    }


def test_variants_of_models() -> None:
    served = [ModelVariant("demo"), ModelVariant("demo", "float32", 4), ModelVariant("other")]
    assert variants_of(served, "demo") == served[:2]
    on_demand = variants_of(served, "Qwen/Qwen3-0.6B")
    assert on_demand[0] == ModelVariant("Qwen/Qwen3-0.6B")
    assert len({label_of(variant) for variant in on_demand}) == len(on_demand) == 12


async def test_without_gradio_the_page_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    transport = httpx.ASGITransport(chat_app(ChatArgs()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.get("/ui/")
    assert response.status_code == 503
    assert "pip install 'gpt-task-serve[ui]'" in response.text
    assert main([str(REPOSITORY / "serve_config.yaml")]) == 0
    assert "The web chat needs gradio: pip install" in capsys.readouterr().out
