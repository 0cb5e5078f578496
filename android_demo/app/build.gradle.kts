plugins {
    id("com.android.application")
    id("org.jetbrains.kotlin.android")
}

android {
    namespace = "org.llamaedge.demo"
    compileSdk = 35

    defaultConfig {
        applicationId = "org.llamaedge.demo"
        // executorch-android itself asks for 23 (`minSdk` in extension/android/executorch_android/build.gradle, read at 1.2); 26 is this app's own choice.
        minSdk = 26
        targetSdk = 35
        versionCode = 1
        versionName = "0.1"
        ndk {
            // What executorch-android ships.
            abiFilters += listOf("arm64-v8a", "x86_64")
        }
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_1_8
        targetCompatibility = JavaVersion.VERSION_1_8
    }

    androidResources {
        // Models are mapped from files; compressing one in the assets would only cost time.
        noCompress += listOf("pte", "json")
    }
}

kotlin {
    compilerOptions {
        jvmTarget.set(org.jetbrains.kotlin.gradle.dsl.JvmTarget.JVM_1_8)
    }
}

dependencies {
    implementation(project(":core"))
    // Take the version that wrote the bundle: `versions` in its manifest.
    implementation("org.pytorch:executorch-android:1.4.1")
}
