"""Which labels have a side is decided on pairs of names, in the languages of the clinic."""

from __future__ import annotations

import pytest

from segpipe.common.label_sides import labels_with_side, left_right_axes

PAIRS = """
    Kidney_L Kidney_R, lh.thalamus rh.thalamus, ctx-lh-insula ctx-rh-insula, LeftLung RightLung, L-x R-x, LtEye RtEye,
    kidneyL kidneyR, Lkidney Rkidney, Hip1L Hip1R, leftkidney rightkidney, kidney.left kidney.right, LEFT_EYE RIGHT_EYE,
    Niere_links Niere_rechts, linkeNiere rechteNiere, Niere_li Niere_re, ReinGauche ReinDroit, rein_g rein_d,
    reni_sinistri reni_destri, rene_sx rene_dx, riñón_izquierdo riñón_derecho, rinon_izq rinon_der,
    ren_sinister ren_dexter, glandula_sinistra glandula_dextra, ren_sin ren_dex, rim_esquerdo rim_direito, 左肺 右肺,
    rib_left_1 rib_right_1, Niere_lks Niere_rts, izqda_rinon dcha_rinon, rein.gau rein.dro, hipp_lft hipp_rght,
    lt_lung rgt_lung, occhio_sin occhio_dest, lobus_sin lobus_dxt
"""


@pytest.mark.parametrize("pair", [pair.split() for pair in PAIRS.split(",")], ids="-".join)
def test_a_pair_that_differs_in_its_side_has_sides(pair: list[str]) -> None:
    labels = ["background", pair[0], "liver", pair[1]]
    assert labels_with_side(labels) == pair
    assert labels_with_side(["background", *reversed(pair)]) == pair[::-1]


@pytest.mark.parametrize(
    "labels",
    [
        "Anterior Posterior",
        "LV RV MYO",
        "vertebra_L1 vertebra_S1 vertebra_T1",
        "upright copyright",
        "muscle_droit muscle_vaste",
        "Kidney_L liver",
        "rib l-rib",
        "liver kidney lesion",
        "A_L_1 A_R_2",
    ],
)
def test_other_names_have_none(labels: str) -> None:
    assert labels_with_side(["background", *labels.split()]) == []


def test_one_word_for_a_side_is_enough_where_it_means_nothing_else() -> None:
    assert labels_with_side(["background", "kidney_left", "left | part", "right part"]) == [
        "kidney_left",
        "left | part",
        "right part",
    ]


def test_left_and_right_lie_where_the_orientation_says() -> None:
    def after(**arguments: object) -> tuple[int, ...]:
        return left_right_axes([{"_target_": "Orientationd", "keys": "image", **arguments}])

    assert after(axcodes="RAS") == after(axcodes=["L", "P", "S"]) == after(as_closest_canonical=True) == (0,)
    assert after(axcodes="SAR") == (2,)
    assert left_right_axes([{"_target_": "LoadImaged"}]) == left_right_axes(None) == (0, 1, 2)
    assert left_right_axes([{"_target_": "monai.transforms.Orientationd", "axcodes": "ALS"}]) == (1,)
