"""What onnx says of the standard's operators; written by ``python -m tools.record_standard``.

A line per operator, and for each of its versions: the version, the numbers of inputs and outputs,
and the names of its attributes behind their types. ``?`` says that no input is required, ``UNSURE``
that it may not be deterministic. A version that is only a number is as the one before. The lines
are those of a data file.
"""

NEWEST = 28  # operator set
RECORD = """\
Abs 1 1 1 INTS consumed_inputs; 6 1 1; 13
Acos 7 1 1; 22
Acosh 9 1 1; 22
Add 1 2 1 INT axis broadcast INTS consumed_inputs; 6 2 1 INT axis broadcast; 7 2 1; 13; 14
AffineGrid 20 2 1 UNSURE INT align_corners
And 1 2 1 INT axis broadcast; 7 2 1
ArgMax 1 1 1 INT axis keepdims; 11; 12 1 1 INT axis keepdims select_last_index; 13
ArgMin 1 1 1 INT axis keepdims; 11; 12 1 1 INT axis keepdims select_last_index; 13
Asin 7 1 1; 22
Asinh 9 1 1; 22
Atan 7 1 1; 22
Atanh 9 1 1; 22
Attention 23 3-6 1-4 FLOAT scale softcap INT is_causal kv_num_heads q_num_heads
 qk_matmul_output_mode softmax_precision; 24 3-7 1-4 FLOAT scale softcap INT is_causal kv_num_heads
 q_num_heads qk_matmul_output_mode softmax_precision; 25 3-7 1-4 FLOAT scale softcap INT is_causal
 kv_num_heads left_window_size q_num_heads qk_matmul_output_mode right_window_size softmax_precision
AveragePool 1 1 1 STRING auto_pad INTS kernel_shape pads strides; 7 1 1 INT count_include_pad STRING
 auto_pad INTS kernel_shape pads strides; 10 1 1 INT ceil_mode count_include_pad STRING auto_pad
 INTS kernel_shape pads strides; 11; 19 1 1 INT ceil_mode count_include_pad STRING auto_pad INTS
 dilations kernel_shape pads strides; 22
BatchNormalization 1 5 1-5 FLOAT epsilon momentum INT is_test spatial INTS consumed_inputs; 6 5 1-5
 FLOAT epsilon momentum INT is_test spatial; 7 5 1-5 FLOAT epsilon momentum INT spatial; 9 5 1-5
 FLOAT epsilon momentum; 14 5 1-3 FLOAT epsilon momentum INT training_mode; 15
Bernoulli 15 1 1 UNSURE FLOAT seed INT dtype; 22
BitCast 26 1 1 INT to
BitShift 11 2 1 STRING direction; 28
BitwiseAnd 18 2 1
BitwiseNot 18 1 1
BitwiseOr 18 2 1
BitwiseXor 18 2 1
BlackmanWindow 17 1 1 INT output_datatype periodic
Cast 1 1 1 STRING to; 6 1 1 INT to; 9; 13; 19 1 1 INT saturate to; 21; 23; 24 1 1 INT saturate to
 STRING round_mode; 25; 28
CastLike 15 2 1; 19 2 1 INT saturate; 21; 23; 24 2 1 INT saturate STRING round_mode; 25
CausalConvWithState 27 2-4 2 UNSURE STRING activation
Ceil 1 1 1 INTS consumed_inputs; 6 1 1; 13
Celu 12 1 1 FLOAT alpha; 28
CenterCropPad 18 2 1 INTS axes
Clip 1 1 1 FLOAT max min INTS consumed_inputs; 6 1 1 FLOAT max min; 11 1-3 1; 12; 13
Col2Im 18 3 1 INTS dilations pads strides
Compress 9 2 1 INT axis; 11; 28
Concat 1 ?1- 1 INT axis; 4; 11; 13
ConcatFromSequence 11 1 1 INT axis new_axis
Constant 1 0 1 TENSOR value; 9; 11 0 1 TENSOR value SPARSE_TENSOR sparse_value; 12 0 1 FLOAT
 value_float INT value_int STRING value_string TENSOR value FLOATS value_floats INTS value_ints
 STRINGS value_strings SPARSE_TENSOR sparse_value; 13; 19; 21; 23; 24; 25
ConstantOfShape 9 1 1 TENSOR value; 20; 21; 23; 24; 25
Conv 1 2-3 1 INT group STRING auto_pad INTS dilations kernel_shape pads strides; 11; 22
ConvInteger 10 2-4 1 INT group STRING auto_pad INTS dilations kernel_shape pads strides
ConvTranspose 1 2-3 1 INT group STRING auto_pad INTS dilations kernel_shape output_padding
 output_shape pads strides; 11; 22
Cos 7 1 1; 22
Cosh 9 1 1; 22
CumProd 26 2 1 INT exclusive reverse
CumSum 11 2 1 INT exclusive reverse; 14
DFT 17 1-2 1 INT axis inverse onesided; 20 1-3 1 INT inverse onesided
DeformConv 19 3-5 1 INT group offset_group INTS dilations kernel_shape pads strides; 22
DepthToSpace 1 1 1 INT blocksize; 11 1 1 INT blocksize STRING mode; 13; 28 1 1 UNSURE INT blocksize
 STRING mode
DequantizeLinear 10 2-3 1; 13 2-3 1 INT axis; 19; 21 2-3 1 INT axis block_size; 23 2-3 1 INT axis
 block_size output_dtype; 24; 25; 28
Det 11 1 1; 22
Div 1 2 1 INT axis broadcast INTS consumed_inputs; 6 2 1 INT axis broadcast; 7 2 1; 13; 14
Dropout 1 1 1-2 UNSURE FLOAT ratio INT is_test INTS consumed_inputs; 6 1 1-2 UNSURE FLOAT ratio INT
 is_test; 7 1 1-2 UNSURE FLOAT ratio; 10; 12 1-3 1-2 UNSURE INT seed; 13; 22
DynamicQuantizeLinear 11 1 3
Einsum 12 ?1- 1 STRING equation; 28
Elu 1 1 1 FLOAT alpha INTS consumed_inputs; 6 1 1 FLOAT alpha; 22
Equal 1 2 1 INT axis broadcast; 7 2 1; 11; 13; 19
Erf 9 1 1; 13
Exp 1 1 1 INTS consumed_inputs; 6 1 1; 13
Expand 8 2 1; 13
EyeLike 9 1 1 INT dtype k; 22
Flatten 1 1 1 INT axis; 9; 11; 13; 21; 23; 24; 25
Floor 1 1 1 INTS consumed_inputs; 6 1 1; 13
GRU 1 3-6 2 FLOAT clip INT hidden_size output_sequence STRING direction FLOATS activation_alpha
 activation_beta STRINGS activations; 3 3-6 0-2 FLOAT clip INT hidden_size linear_before_reset
 output_sequence STRING direction FLOATS activation_alpha activation_beta STRINGS activations; 7 3-6
 0-2 FLOAT clip INT hidden_size linear_before_reset STRING direction FLOATS activation_alpha
 activation_beta STRINGS activations; 14 3-6 0-2 FLOAT clip INT hidden_size layout
 linear_before_reset STRING direction FLOATS activation_alpha activation_beta STRINGS activations;
 22
Gather 1 2 1 INT axis; 11; 13
GatherElements 11 2 1 INT axis; 13
GatherND 11 2 1; 12 2 1 INT batch_dims; 13
Gelu 20 1 1 STRING approximate
Gemm 1 3 1 FLOAT alpha beta INT broadcast transA transB; 6; 7 3 1 FLOAT alpha beta INT transA
 transB; 9; 11 2-3 1 FLOAT alpha beta INT transA transB; 13
GlobalAveragePool 1 1 1; 22
GlobalLpPool 1 1 1 FLOAT p; 2 1 1 INT p; 22
GlobalMaxPool 1 1 1; 22
Greater 1 2 1 INT axis broadcast; 7 2 1; 9; 13
GreaterOrEqual 12 2 1; 16
GridSample 16 2 1 INT align_corners STRING mode padding_mode; 20; 22
GroupNormalization 18 DEPRECATED; 21 3 1 FLOAT epsilon INT num_groups stash_type
HammingWindow 17 1 1 INT output_datatype periodic
HannWindow 17 1 1 INT output_datatype periodic
HardSigmoid 1 1 1 FLOAT alpha beta INTS consumed_inputs; 6 1 1 FLOAT alpha beta; 22
HardSwish 14 1 1; 22
Hardmax 1 1 1 INT axis; 11; 13
Identity 1 1 1; 13; 14; 16; 19; 21; 23; 24; 25
If 1 1 1- UNSURE GRAPH else_branch then_branch; 11; 13; 16; 19; 21; 23; 24; 25
ImageDecoder 20 1 1 STRING pixel_format
InstanceNormalization 1 3 1 FLOAT epsilon INTS consumed_inputs; 6 3 1 FLOAT epsilon; 22
IsInf 10 1 1 INT detect_negative detect_positive; 20
IsNaN 9 1 1; 13; 20
LRN 1 1 1 FLOAT alpha beta bias INT size; 13
LSTM 1 3-8 0-3 FLOAT clip INT hidden_size input_forget output_sequence STRING direction FLOATS
 activation_alpha activation_beta STRINGS activations; 7 3-8 0-3 FLOAT clip INT hidden_size
 input_forget STRING direction FLOATS activation_alpha activation_beta STRINGS activations; 14 3-8
 0-3 FLOAT clip INT hidden_size input_forget layout STRING direction FLOATS activation_alpha
 activation_beta STRINGS activations; 22
LayerNormalization 17 2-3 1-3 FLOAT epsilon INT axis stash_type
LeakyRelu 1 1 1 FLOAT alpha INTS consumed_inputs; 6 1 1 FLOAT alpha; 16
Less 1 2 1 INT axis broadcast; 7 2 1; 9; 13
LessOrEqual 12 2 1; 16
LinearAttention 27 3-6 2 UNSURE FLOAT scale INT chunk_size kv_num_heads q_num_heads STRING
 update_rule
Log 1 1 1 INTS consumed_inputs; 6 1 1; 13
LogSoftmax 1 1 1 INT axis; 11; 13
Loop 1 ?3- 1- UNSURE GRAPH body; 11 ?2- 1- UNSURE GRAPH body; 13; 16; 19; 21; 23; 24; 25
LpNormalization 1 1 1 INT axis p; 22
LpPool 1 1 1 FLOAT p STRING auto_pad INTS kernel_shape pads strides; 2 1 1 INT p STRING auto_pad
 INTS kernel_shape pads strides; 11; 18 1 1 INT ceil_mode p STRING auto_pad INTS dilations
 kernel_shape pads strides; 22
MatMul 1 2 1; 9; 13
MatMulInteger 10 2-4 1
Max 1 ?1- 1 INTS consumed_inputs; 6 ?1- 1; 8; 12; 13
MaxPool 1 1 1 STRING auto_pad INTS kernel_shape pads strides; 8 1 1-2 INT storage_order STRING
 auto_pad INTS kernel_shape pads strides; 10 1 1-2 INT ceil_mode storage_order STRING auto_pad INTS
 dilations kernel_shape pads strides; 11; 12; 22
MaxRoiPool 1 2 1 FLOAT spatial_scale INTS pooled_shape; 22
MaxUnpool 9 2-3 1 INTS kernel_shape pads strides; 11; 22
Mean 1 ?1- 1 INTS consumed_inputs; 6 ?1- 1; 8; 13
MeanVarianceNormalization 9 1 1 INTS axes; 13
MelWeightMatrix 17 5 1 INT output_datatype
Min 1 ?1- 1 INTS consumed_inputs; 6 ?1- 1; 8; 12; 13
Mish 18 1 1; 22
Mod 10 2 1 INT fmod; 13; 28
Mul 1 2 1 INT axis broadcast INTS consumed_inputs; 6 2 1 INT axis broadcast; 7 2 1; 13; 14
Multinomial 7 1 1 UNSURE FLOAT seed INT dtype sample_size; 22
Neg 1 1 1 INTS consumed_inputs; 6 1 1; 13
NegativeLogLikelihoodLoss 12 2-3 1 INT ignore_index STRING reduction; 13; 22
NonMaxSuppression 10 2-5 1 INT center_point_box; 11
NonZero 9 1 1; 13
Not 1 1 1
OneHot 9 3 1 INT axis; 11; 28
Optional 15 0-1 1 TYPE_PROTO type; 28
OptionalGetElement 15 1 1; 18; 28
OptionalHasElement 15 1 1; 18 0-1 1; 28
Or 1 2 1 INT axis broadcast; 7 2 1
PRelu 1 2 1 INTS consumed_inputs; 6 2 1; 7; 9; 16
Pad 1 1 1 FLOAT value STRING mode INTS paddings; 2 1 1 FLOAT value STRING mode INTS pads; 11 2-3 1
 STRING mode; 13; 18 2-4 1 STRING mode; 19; 21; 23; 24; 25
Pow 1 2 1 INT axis broadcast; 7 2 1; 12; 13; 15
QLinearConv 10 8-9 1 INT group STRING auto_pad INTS dilations kernel_shape pads strides
QLinearMatMul 10 8 1; 21
QuantizeLinear 10 2-3 1; 13 2-3 1 INT axis; 19 2-3 1 INT axis saturate; 21 2-3 1 INT axis block_size
 output_dtype saturate; 23 2-3 1 INT axis block_size output_dtype precision saturate; 24; 25; 28
RMSNormalization 23 2 1 FLOAT epsilon INT axis stash_type
RNN 1 3-6 0-2 FLOAT clip INT hidden_size output_sequence STRING direction FLOATS activation_alpha
 activation_beta STRINGS activations; 7 3-6 0-2 FLOAT clip INT hidden_size STRING direction FLOATS
 activation_alpha activation_beta STRINGS activations; 14 3-6 0-2 FLOAT clip INT hidden_size layout
 STRING direction FLOATS activation_alpha activation_beta STRINGS activations; 22
RandomNormal 1 0 1 UNSURE FLOAT mean scale seed INT dtype INTS shape; 22
RandomNormalLike 1 1 1 UNSURE FLOAT mean scale seed INT dtype; 22
RandomUniform 1 0 1 UNSURE FLOAT high low seed INT dtype INTS shape; 22
RandomUniformLike 1 1 1 UNSURE FLOAT high low seed INT dtype; 22
Range 11 3 1; 27 3 1 INT stash_type
Reciprocal 1 1 1 INTS consumed_inputs; 6 1 1; 13
ReduceL1 1 1 1 INT keepdims INTS axes; 11; 13; 18 1-2 1 INT keepdims noop_with_empty_axes
ReduceL2 1 1 1 INT keepdims INTS axes; 11; 13; 18 1-2 1 INT keepdims noop_with_empty_axes
ReduceLogSum 1 1 1 INT keepdims INTS axes; 11; 13; 18 1-2 1 INT keepdims noop_with_empty_axes; 28
ReduceLogSumExp 1 1 1 INT keepdims INTS axes; 11; 13; 18 1-2 1 INT keepdims noop_with_empty_axes; 28
ReduceMax 1 1 1 INT keepdims INTS axes; 11; 12; 13; 18 1-2 1 INT keepdims noop_with_empty_axes; 20
ReduceMean 1 1 1 INT keepdims INTS axes; 11; 13; 18 1-2 1 INT keepdims noop_with_empty_axes
ReduceMin 1 1 1 INT keepdims INTS axes; 11; 12; 13; 18 1-2 1 INT keepdims noop_with_empty_axes; 20
ReduceProd 1 1 1 INT keepdims INTS axes; 11; 13; 18 1-2 1 INT keepdims noop_with_empty_axes
ReduceSum 1 1 1 INT keepdims INTS axes; 11; 13 1-2 1 INT keepdims noop_with_empty_axes
ReduceSumSquare 1 1 1 INT keepdims INTS axes; 11; 13; 18 1-2 1 INT keepdims noop_with_empty_axes
RegexFullMatch 20 1 1 STRING pattern
Relu 1 1 1 INTS consumed_inputs; 6 1 1; 13; 14
Reshape 1 1 1 INTS consumed_inputs shape; 5 2 1; 13; 14 2 1 INT allowzero; 19; 21; 23; 24; 25
Resize 10 2 1 STRING mode; 11 3-4 1 FLOAT cubic_coeff_a extrapolation_value INT exclude_outside
 STRING coordinate_transformation_mode mode nearest_mode; 13 1-4 1 FLOAT cubic_coeff_a
 extrapolation_value INT exclude_outside STRING coordinate_transformation_mode mode nearest_mode; 18
 1-4 1 FLOAT cubic_coeff_a extrapolation_value INT antialias exclude_outside STRING
 coordinate_transformation_mode keep_aspect_ratio_policy mode nearest_mode INTS axes; 19
ReverseSequence 10 2 1 INT batch_axis time_axis; 28
RoiAlign 10 3 1 FLOAT spatial_scale INT output_height output_width sampling_ratio STRING mode; 16 3
 1 FLOAT spatial_scale INT output_height output_width sampling_ratio STRING
 coordinate_transformation_mode mode; 22
RotaryEmbedding 23 3-4 1 INT interleaved num_heads rotary_embedding_dim
Round 11 1 1; 22
STFT 17 2-4 1 INT onesided
Scan 8 ?2- 1- UNSURE INT num_scan_inputs GRAPH body INTS directions; 9 ?1- 1- UNSURE INT
 num_scan_inputs GRAPH body INTS scan_input_axes scan_input_directions scan_output_axes
 scan_output_directions; 11; 16; 19; 21; 23; 24; 25
Scatter 9 3 1 INT axis; 11 DEPRECATED
ScatterElements 11 3 1 INT axis; 13; 16 3 1 INT axis STRING reduction; 18
ScatterND 11 3 1; 13; 16 3 1 STRING reduction; 18
Selu 1 1 1 FLOAT alpha gamma INTS consumed_inputs; 6 1 1 FLOAT alpha gamma; 22
SequenceAt 11 2 1
SequenceConstruct 11 ?1- 1
SequenceEmpty 11 0 1 INT dtype
SequenceErase 11 1-2 1
SequenceInsert 11 2-3 1
SequenceLength 11 1 1
SequenceMap 17 1- 1- UNSURE GRAPH body
Shape 1 1 1; 13; 15 1 1 INT end start; 19; 21; 23; 24; 25
Shrink 9 1 1 FLOAT bias lambd
Sigmoid 1 1 1 INTS consumed_inputs; 6 1 1; 13
Sign 9 1 1; 13
Sin 7 1 1; 22
Sinh 9 1 1; 22
Size 1 1 1; 13; 19; 21; 23; 24; 25
Slice 1 1 1 INTS axes ends starts; 10 3-5 1; 11; 13
Softmax 1 1 1 INT axis; 11; 13
SoftmaxCrossEntropyLoss 12 2-3 1-2 INT ignore_index STRING reduction; 13
Softplus 1 1 1; 22
Softsign 1 1 1; 22
SpaceToDepth 1 1 1 INT blocksize; 13; 28 1 1 UNSURE INT blocksize STRING mode
Split 1 1-2 1- INT axis INTS split; 2 1 1- INT axis INTS split; 11; 13 1-2 1- INT axis; 18 1-2 1-
 INT axis num_outputs
SplitToSequence 11 1-2 1 INT axis keepdims; 24
Sqrt 1 1 1 INTS consumed_inputs; 6 1 1; 13
Squeeze 1 1 1 INTS axes; 11; 13 1-2 1; 21; 23; 24; 25
StringConcat 20 2 1
StringNormalizer 10 1 1 INT is_case_sensitive STRING case_change_action locale STRINGS stopwords
StringSplit 20 1 2 INT maxsplit STRING delimiter
Sub 1 2 1 INT axis broadcast INTS consumed_inputs; 6 2 1 INT axis broadcast; 7 2 1; 13; 14
Sum 1 ?1- 1 INTS consumed_inputs; 6 ?1- 1; 8; 13
SwiGLU 28 2 1 FLOAT alpha
Swish 24 1 1 FLOAT alpha
Tan 7 1 1; 22
Tanh 1 1 1 INTS consumed_inputs; 6 1 1; 13
TensorScatter 24 2-3 1 INT axis STRING mode
TfIdfVectorizer 9 1 1 INT max_gram_length max_skip_count min_gram_length STRING mode FLOATS weights
 INTS ngram_counts ngram_indexes pool_int64s STRINGS pool_strings
ThresholdedRelu 10 1 1 FLOAT alpha; 22
Tile 1 3 1; 6 2 1; 13
TopK 1 1 2 INT axis k; 10 2 2 INT axis; 11 2 2 INT axis largest sorted; 24
Transpose 1 1 1 INTS perm; 13; 21; 23; 24; 25
Trilu 14 1-2 1 INT upper
Unique 11 1 1-4 INT axis sorted; 28
Unsqueeze 1 1 1 INTS axes; 11; 13 2 1; 21; 23; 24; 25
Upsample 1 1 1 FLOAT height_scale width_scale STRING mode; 7 1 1 STRING mode FLOATS scales; 9 2 1
 STRING mode; 10 DEPRECATED
Where 9 3 1; 16
Xor 1 2 1 INT axis broadcast; 7 2 1
"""
