"""The frameworks that are tried: their scripts, environments and versions."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
NODE = "node"


@dataclass(frozen=True)
class Framework:
    """A framework.

    Attributes:
        name: of its script: ``hello/hello_NAME.py``, or ``.mjs``.
        title: for people.
        package: whose version counts.
        environment: where it is installed: ``requirements/ENVIRONMENT.txt``, or `NODE`. Some cannot
            be installed beside others.
    """

    name: str
    title: str
    package: str
    environment: str = "main"

    @property
    def version(self) -> str:
        """The version that its requirements name."""
        if self.environment == NODE:
            packages = json.loads((HERE / "requirements/package.json").read_text(encoding="utf-8"))
            return str(packages["dependencies"][self.package])
        pins = (HERE / f"requirements/{self.environment}.txt").read_text(encoding="utf-8")
        (version,) = re.findall(rf"^{re.escape(self.package)}==(\S+)$", pins, re.MULTILINE)
        return str(version)

    def command(self, environments: Path) -> list[str]:
        """How to run its script, where ``environments`` has a folder for each environment."""
        folder = environments / self.environment
        if self.environment == NODE:
            # Node looks for packages beside the script that imports them.
            script = shutil.copy(HERE / f"hello/hello_{self.name}.mjs", folder)
            return ["node", str(script)]
        return [str(folder / "bin/python"), str(HERE / f"hello/hello_{self.name}.py")]


FRAMEWORKS = (
    Framework("autogen", "AutoGen", "autogen-agentchat"),
    Framework("semantic_kernel", "Semantic Kernel", "semantic-kernel", "semantic_kernel"),
    Framework("langchain", "LangChain", "langchain"),
    Framework("llama_index", "LlamaIndex", "llama-index-core", "llama_index"),
    Framework("openai_agents", "OpenAI Agents SDK", "openai-agents"),
    Framework("haystack", "Haystack", "haystack-ai"),
    Framework("dspy", "DSPy", "dspy"),
    Framework("smolagents", "smolagents", "smolagents"),
    Framework("instructor", "instructor", "instructor", "instructor"),
    Framework("pydantic_ai", "Pydantic AI", "pydantic-ai-slim"),
    Framework("anthropic", "Anthropic SDK", "anthropic"),
    Framework("ai_sdk", "AI SDK", "ai", NODE),
)
