"""A generator of whole models, and a judge of what a fold makes of them.

It knows the ONNX specification and the public interface of the package, and nothing of the
package's rules: ``README.md`` says how it works and how to run it.
"""
