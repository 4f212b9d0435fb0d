"""Settings: checked whole, unknown keys refused, every fault named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from clara.config import CompressionConfig, LoraSettings, check, read_toml
from clara.errors import ConfigError, InputError


def test_the_rates_of_a_window() -> None:
    rates = (4, 8, 16, 32, 64, 128)
    config = CompressionConfig(rates=rates)
    assert [config.memory_tokens(rate) for rate in rates] == [64, 32, 16, 8, 4, 2]
    assert config.default_rate == 4
    with pytest.raises(ConfigError, match="serves the rates 4x, 8x, 16x, 32x, 64x, 128x, not 5x"):
        config.memory_tokens(5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rates": []}, "rates must name each rate once"),
        ({"rates": [4, 4]}, "rates must name each rate once"),
        ({"rates": [0]}, "rate 0 does not divide"),
        ({"rates": [3]}, "rate 3 does not divide the window of 256 tokens"),
        ({"read_out": "mean_pool", "pooled_input": True}, "no meaning for read_out mean_pool"),
        ({"positions": "random"}, "positions: Input should be 'appended' or 'spread'"),
        ({"compr_rate": 4}, "compr_rate: Extra inputs are not permitted"),
    ],
)
def test_wrong_compression(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"run\.toml: 1 fault\(s\): .*{message}"):
        check(CompressionConfig, values, source="run.toml")


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check(LoraSettings, {"rank": 0, "alpha": -1, "dropout": 1, "r": 4}, source="command line")
    message = str(caught.value)
    assert message.startswith("command line: 4 fault(s): ")
    assert all(f"{name}: " in message for name in ("rank", "alpha", "dropout", "r"))
    assert isinstance(caught.value, InputError)


def test_settings_are_frozen_and_come_back_from_json() -> None:
    config = CompressionConfig(window_tokens=64, rates=(16, 4), gain=True)
    assert CompressionConfig.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValidationError, match="frozen"):
        config.gain = False


def test_toml_files(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("steps = 3\n[compression]\nrates = [4]\n")
    assert read_toml(path) == {"steps": 3, "compression": {"rates": [4]}}
    path.write_text("steps = \n")
    with pytest.raises(ConfigError, match=r"run\.toml is not valid TOML"):
        read_toml(path)
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match=r"run\.toml is not valid TOML"):
        read_toml(path)
    with pytest.raises(ConfigError, match=r"no configuration file at .*nothing"):
        read_toml(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"cannot be read as a configuration file: Is a directory"):
        read_toml(tmp_path)
