"""The toy of benchmarks/subjects: both papers' mechanisms, with one encoder."""

import pytest

from benchmarks.subjects import experiments, world


@pytest.mark.slow
def test_a_weight_keeps_the_class_at_the_price_of_identity_and_words_are_told_apart():
    made, encoder = world.pretrained(0)
    free, kept, strict = (experiments.subject(made, encoder, weight) for weight in (0.0, 1.0, 3.0))
    assert free["semantic distance"] > kept["semantic distance"] > strict["semantic distance"]
    assert free["identity"] > kept["identity"] > strict["identity"]
    assert free["background absorbed"] > strict["background absorbed"]
    assert strict["new word present"] > free["new word present"]
    forms = {form: experiments.subjects(made, encoder, form) for form in experiments.FORMS}
    assert forms["not tuned"]["retrieval"] < 0.25 and forms["ours"]["retrieval"] == 1.0
    apart = "largest cosine between subjects"
    assert forms["ours"][apart] < forms["official form"][apart] < forms["not tuned"][apart]
    assert forms["ours"]["pair attended"] > forms["without mix"]["pair attended"]
