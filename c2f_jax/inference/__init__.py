"""Using a finished run: `load_model(workdir).predict(images)`."""

from c2f_jax.inference.predict import Model, Prediction, load_model

__all__ = ["Model", "Prediction", "load_model"]
