from pathlib import Path

from pretrain.parity.features import FEATURES, all_pairs, config_of, features_of
from pretrain.parity.layout_table import layouts_page, letter

PAGE = Path(__file__).parents[2] / "docs" / "layouts.md"


def test_the_page_is_what_the_rules_say():
    assert PAGE.read_text() == layouts_page(), "run: python -m pretrain.parity.layout_table > docs/layouts.md"


def test_every_feature_is_allowed_alone_and_found_in_its_own_config():
    for feature in FEATURES:
        assert feature.name in features_of(config_of(feature)), feature.name


def test_every_refusal_names_a_setting_and_a_way_out():
    for pair in all_pairs():
        if pair.status == "refused":
            assert "=" in pair.reason and any(word in pair.reason for word in ("set ", "use ")), pair.reason


def test_letters_go_on_behind_z():
    assert [letter(n) for n in (1, 26, 27, 52, 53)] == ["a", "z", "aa", "az", "ba"]
