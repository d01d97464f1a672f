"""The arguments that a listed class or function may be given: the kind of each, by its name.

What a name does depends on what it is given: a saver writes where it is told, an engine compiles with the compiler that
it is told. So an argument is judged as well as the name: by the kind of the parameter that it is given to. A parameter
that stands nowhere here is refused, also one that a later MONAI or torch adds; a test goes through the signatures of
all listed names and fails where one has a parameter that nobody judged. Why each family is safe stands in
docs/decisions/0006-what-a-bundle-may-run.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Kind = Literal["value", "function", "read", "write", "name", "named", "never"]
OneOf = tuple[object, ...]

WORDS: Mapping[str, str] = {
    "value": "plain data, a reference, an expression or a component; no function or class by name",
    "function": "as a value, or a listed function that takes values alone",
    "read": "a path within the bundle, the data or the results: @bundle_root, @dataset_dir, or what lies below",
    "write": "@output_dir, @run_dir, @store, or what lies below",
    "name": "a plain part of a file's name, written out",
    "named": "a mapping that is written out, with keys that are plain parts of a file's name",
    "never": "null",
}

# The same for all classes that have a parameter of this name; exceptions are below.
PARAMETERS: Mapping[Kind, str] = {
    "value": """
        a_max a_min above abspath accumulation_steps act act_name acti_type activation adn_ordering affine
        affine_lps_to_ras align_corners allow_missing_keys allow_smaller alpha amp amp_kwargs amsgrad angle
        annotated_sets anti_aliasing anti_aliasing_sigma applied_labels apply_argmax approx argmax as_closest_canonical
        as_contiguous attn_drop_rate averaged axcodes axes b_max b_min backbone batch batch_sampler batch_size
        beta betas bg_indices_key bg_postfix bias bins blocks_bottleneck blocks_down blocks_up
        bottleneck_expansion_ratio buffer_dim buffer_size buffer_steps buffer_timeout by_measure cache_grid
        cache_num cache_rate cache_roi_weight_map capturable channel_dim channel_indices channel_matching
        channel_prob channel_wise channels channels_last class_thresholds class_weights classes cleanup clip
        coeff_range compute_sample connectivity constant_values conv_block cooldown copy_cache cpu_thresh
        cumulative_delta cval cycles dampening data data_list_key data_source data_type datalist dataset decay
        decoder_bias decoder_channels decoder_expansion_ratio decollate decoupled_weight_decay deep_supervision
        deep_supr_num degree degrees delimiter delta depths detach device diagonal differentiable dilation dim
        directed dist_matrix distance_metric distance_type divisor downsample downsample_mode drop_last
        drop_rate dropout dropout_dim dropout_holes dropout_path_rate dropout_prob dropout_prob_down
        dropout_prob_up dropout_rate dsdepth dst encoder_expansion_ratio end_coord_key end_factor end_lr
        end_values ensure_channel_first ensure_same_shape epoch_bound epoch_length epoch_level epochs eps
        epsilon et_label eta_min evaluator even_divisible event exec_at_start expanduser factor factor_key
        factors feature_size features fg_indices_key fg_postfix fill_value filters first fname_regex focal_alpha
        fold foreach frame_dim frozen fused gamma generator get_not_nans global_resp_norm grad_averaging groups
        hash_as_key hidden_size holes hyena_fft_padding hyena_grid_type hyena_kernel_layers hyena_kernel_mlp_dim
        hyena_kernel_size hyena_l_cache hyena_mask_max_attenuation hyena_omega_0 hyena_short_conv_fft_chunks
        hyena_stages hyena_use_chunked_fft hyena_use_fft_short_conv ignore_empty ignore_index ignore_label image_key
        image_only image_threshold img_size in_channels in_order include_background include_others independent
        independent_channels index index_order indices indices_key indices_postfix init init_filters inplace
        input_image_size inputs interp_mode interval invert invert_image is_multilabel is_onehot is_pad
        is_segmentation iter_ jaccard k k_divisible keep keep_size keepdim kernel_ops kernel_size key_dst
        key_metric_greater_or_equal key_metric_n_saved key_metric_negative_sign key_metric_save_state keys
        label_dict label_key label_smoothing labels lambda_ce lambda_dice lambda_focal lambda_gdl last_epoch
        layer_params lazy length list_output load_dict log lower lr lr_scheduler lr_values magnitude_range
        map_items margin mask_data mask_key masks match_types max_channels max_epochs max_frames max_holes max_k
        max_memory max_norm max_pixdim max_roi_size max_samples_per_class max_spatial_size max_zoom maximize
        maxv mean measure memory_format meta_key_postfix meta_keys method metric metric_details metric_name
        metrics milestones min_delta min_lr min_pixdim min_size min_zoom minv mlp_dim mlp_ratio mode momentum
        momentum_decay most_skipped n_labels n_saved name names nearest_interp neg negative_slope nesterov non_blocking
        non_deterministic nonzero norm norm_name norm_type normalize npz_keys num_classes num_components
        num_control_points num_features num_groups num_heads num_parameters num_partitions num_res_units
        num_samples num_workers offset offsets optim_set_to_none optimizer orig_keys orig_labels orig_meta_keys
        out_channels output_format output_key output_postfixes output_shape overlap overrides overwriting pad
        padding padding_mode params patch_norm patch_size patience per_component per_sample percentile
        persistent_workers pin_memory pin_memory_device pixdim pos pos_weight power pre_conv precision pred_keys
        prefetch_factor preprocess print_log print_lr prob progress proj_type prune_meta_pattern prune_meta_sep
        prune_metadata qkv_bias ramp random_center random_size range_x range_y range_z ratios recompute_affine
        recursive reduce reduction reflect_type regions relative repair repeats replacement res_block resample
        resolution resume retain_stats return_coords return_with_label reverse_indexing roi_center roi_end
        roi_size roi_slices roi_start roi_weight_map rotate_order rotate_range rounding runtime_cache safe
        sample_std sampler save_attn save_details save_final save_interval save_key_metric save_rank
        savepath_in_metadict scale scale_extent scale_range schedule schedulers seed sep separate_folder
        series_meta series_name series_uid shear_range shuffle sigma sigma1_x sigma1_y sigma1_z sigma2_x
        sigma2_y sigma2_z sigma_range sigma_scale sigma_x sigma_y sigma_z sigmoid simple_keys size_average
        size_mode skip_unrolling sliced_axis smooth smooth_above smooth_dr smooth_nr soft_label softmax source_key
        spacing spacing_mm spatial_axes spatial_axis spatial_border spatial_dim spatial_dims spatial_size split squared
        squared_pred steps squeeze_end_dims squeeze_non_spatial_dims src start start_coord_key start_factor
        stat_length state_attributes std step_size strict strict_check strict_shape stride strides subtrahend
        summary_ops summary_writer sw_batch_size sw_device swap_ij symmetric T_0 T_max T_mult t_total tag_name
        target_labels tensor threshold threshold_mode timeout times to_kwargs to_onehot to_onehot_y to_tensor
        tolerance_mm total_iters track_meta track_running_stats train_data_loader train_handlers trainer
        trans_bias translate_range unit up_kernel_size update_meta upper upsample upsample_kernel_size
        upsample_mode use_checkpoint use_conv_final use_deterministic_algorithms use_flash_attention use_hyena
        use_re use_residual_connection use_softmax use_subvoxels use_thread_workers use_v2 vae_default_std
        vae_estimate_std vae_nz val_data_loader val_handlers validator vals value w_key w_type warmup_multiplier
        warmup_steps warn weight weight_decay weight_mode weight_type weighting_mode weights window_size
        with_coord wrap_array wrap_sequence zoom zoom_range
    """,
    "function": """
        activate batch_transform collate_fn dtype epoch_log global_epoch_transform global_iter_transform inferer
        iteration_log layer_matches loss loss_fn loss_function map_location metric_fn network networks norm_layer other
        other_act output_dtype output_transform post_func postprocessing predictor score_function select_fn self
        step_transform transform transforms
    """,
    "read": "base_dir config_file data_list_file_path load_path manifest root",
    "write": "log_dir output_dir run_dir save_dir store",
    "name": "file_prefix final_filename key_metric_filename key_metric_name output_ext output_postfix",
    "named": "additional_metrics key_train_metric key_val_metric save_dict",  # files are named by their keys
    "never": """
        additional_settings compile_kwargs epoch_event_writer epoch_print_logger event_names event_to_attr
        folder_layout hash_func iteration_event_writer iteration_print_logger iteration_update key_var_format
        metric_cmp_fn multiprocessing_context output_name_formatter prepare_batch process_fn worker_init_fn
    """,
}

# Plain values alone, no reference and no expression.
ONE_OF: Mapping[str, OneOf] = {
    # MONAI imports and calls whatever these two name
    "reader": (None, "NibabelReader", "ITKReader", "PydicomReader", "NrrdReader", "PILReader"),
    "writer": (None, "NibabelWriter", "ITKWriter", "PILWriter"),
    "allow_pickle": (False,),
    "weights_only": (True,),
    "pretrained": (None, False),  # weights from the network
    "compile": (None, False),  # starts a compiler
    "compiled": (None, False),  # the same
    "data_root_dir": (None, ""),  # a file would go where its metadata says that the image lies, relative to it
    "unpack_items": (False,),  # would hand on what the data says as arguments of a transform, such as a file's name
    "log_stats": (None, False),  # would log what is in the data
    "output_type": ("csv",),
    "_debug_": (None,),
}

ANYWHERE = ("reader", "writer", "allow_pickle", "weights_only", "pretrained", "_debug_")  # whatever a key of it is of

EXCEPTIONS: Mapping[str, Mapping[str, Kind]] = {
    "FastPrediction": {"weights": "read"},
    "load_cases": {"data": "read"},
    "pretrained_network": {"weights": "read"},
}

_PADDING = "constant_values end_values reflect_type stat_length value"
_READING = """
    affine_lps_to_ras channel_dim as_closest_canonical fname_regex index_order label_dict npz_keys prune_metadata
    reverse_indexing series_meta series_name squeeze_non_spatial_dims swap_ij
"""
_LOADING = """
    batch_sampler batch_size collate_fn drop_last generator in_order num_workers persistent_workers pin_memory
    prefetch_factor sampler shuffle timeout
"""
_WINDOWS = """
    buffer_dim buffer_steps cache_roi_weight_map cpu_thresh cval device mode overlap padding_mode progress roi_size
    sigma_scale sw_batch_size sw_device with_coord
"""
# What may be given beyond the signature, where a class has `**kwargs` and hands them on.
HANDED_ON: Mapping[str, str] = {
    **dict.fromkeys(("Activations", "Activationsd", "AsDiscrete", "AsDiscreted"), "dim keepdim"),
    **dict.fromkeys(("BorderPadd", "DivisiblePad", "DivisiblePadd", "SpatialPad", "SpatialPadd"), _PADDING),
    **dict.fromkeys(("CropForeground", "CropForegroundd", "ResizeWithPadOrCrop", "ResizeWithPadOrCropd"), _PADDING),
    **dict.fromkeys(("RandZoomd", "Zoom", "Zoomd", "pad_list_data_collate"), _PADDING),
    **dict.fromkeys(("LoadImage", "LoadImaged"), _READING),
    **dict.fromkeys(("DataLoader", "ThreadDataLoader"), _LOADING),
    **dict.fromkeys(("SelectItemsd", "ToMetaTensord"), "keys allow_missing_keys"),
    "SliceInferer": _WINDOWS,
    "ToDeviced": "non_blocking",
    "Module.to": "device dtype memory_format non_blocking tensor",
    **dict.fromkeys(("DicomReader", "Identity", "Sigmoid", "sliding_window_inference"), ""),
}
_MORE = """
    Identity Module.to SelectItemsd Sequential Sigmoid SliceInferer sliding_window_inference ToMetaTensord
"""  # they take `*args`, which are values
BY_TARGET = ("SaveImage", "SaveImaged")  # `predict` switches them off where they stand in a config
VALUES_ALONE = ("builtins", "numpy", "torch", "torch.cuda")  # their listed functions compute with what they get

_KINDS: Mapping[str, Kind | OneOf] = {
    **{name: kind for kind, names in PARAMETERS.items() for name in names.split()},
    **ONE_OF,
}
_HARMLESS = ("value", "function")


def kind_of(listed: str, parameter: str) -> Kind | OneOf | None:
    """Return of which kind an argument of a listed name must be, None where nobody judged the parameter.

    Args:
        listed: the name as it is listed, with its module.
        parameter: of its signature, ``*args`` for those by position beyond it, or a keyword beyond it.
    """
    short = short_name(listed)
    if is_of_values_alone(listed):
        return "function"
    if parameter.startswith("*"):
        return "value" if short in _MORE.split() else "never"
    return EXCEPTIONS.get(short, {}).get(parameter) or _KINDS.get(parameter)


def is_handed_on(listed: str, keyword: str) -> bool:
    """Return whether a keyword beyond the signature may be given to a class that hands it on."""
    return is_of_values_alone(listed) or keyword in HANDED_ON.get(short_name(listed), "").split()


def guarded(parameter: str) -> Kind | OneOf | None:
    """Return the kind of a parameter that is dangerous in any class, for where the class is not known or not listed."""
    kind = _KINDS.get(parameter)
    return None if is_harmless(kind) else kind


def is_harmless(kind: Kind | OneOf | None) -> bool:
    """Return whether arguments of a kind may be whatever the code that calls likes to give."""
    return kind in _HARMLESS


def is_of_values_alone(listed: str) -> bool:
    """Return whether a name is a function of numbers, texts and arrays, whatever it is given."""
    module = listed.rpartition(".")[0] or "builtins"
    return module in VALUES_ALONE


def short_name(listed: str) -> str:
    """Return the name without its module: a class or function, or a method with its class."""
    parts = listed.split(".")
    return ".".join(parts[-2:] if len(parts) > 1 and parts[-2][:1].isupper() else parts[-1:])
