"""What toys of latent-variable stories share: the sites of a model and guide made of prior, decoder and encoder."""

import pyro
from pyro.nn import pyro_method

from pplgen.story.latent import LatentStory


class EncodedRows(LatentStory):
    """Rows with latent variables z, drawn from ``prior()``, ``decode(z)`` and ``encode(x)`` of a subclass."""

    @pyro_method
    def model(self, x=None, num_rows=1):
        with pyro.plate("data", num_rows if x is None else len(x)):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.decode(z), obs=x)

    @pyro_method
    def guide(self, x=None, num_rows=1):
        if x is not None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", self.encode(x))
